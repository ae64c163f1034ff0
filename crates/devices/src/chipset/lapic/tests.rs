use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use super::message::{DeliveryMode, DestinationMode, Message, Trigger};
use super::registers::reg;
use crate::chipset::ApicBus;
use crate::chipset::testing::Recorder;
use crate::irq::{Msi, MsiSink};
use crate::timer::TimerId;

fn apics(count: u32) -> (Arc<Recorder>, ApicBus) {
    let recorder = Recorder::new();
    let apics = ApicBus::new(count, recorder.lapic_glue());
    for vcpu in 0..count {
        write(&apics, vcpu, reg::SVR, 0x1ff);
    }
    (recorder, apics)
}

fn write(apics: &ApicBus, vcpu: u32, register: u32, value: u32) {
    apics.mmio_write(vcpu, u64::from(register) * 16, &value.to_le_bytes());
}

fn read(apics: &ApicBus, vcpu: u32, register: u32) -> u32 {
    let mut data = [0; 4];
    apics.mmio_read(vcpu, u64::from(register) * 16, &mut data);
    u32::from_le_bytes(data)
}

fn ipi(apics: &ApicBus, from: u32, destination: u32, low: u32) {
    write(apics, from, reg::ICR_HIGH, destination << 24);
    write(apics, from, reg::ICR, low);
}

fn fixed(destination: u32, mode: DestinationMode, vector: u8) -> Message {
    Message { destination, mode, delivery: DeliveryMode::Fixed, vector, trigger: Trigger::Edge }
}

fn pending(apics: &ApicBus) -> Vec<u32> {
    apics.lapics().iter().filter(|l| l.pending().is_some()).map(|l| l.id()).collect()
}

#[test]
fn power_up_state_is_the_manuals() {
    let apics = ApicBus::new(2, Recorder::new().lapic_glue());
    assert_eq!(apics.msr_read(0, 0x1b), Ok(0xfee0_0900));
    assert_eq!(apics.msr_read(1, 0x1b), Ok(0xfee0_0800));
    assert_eq!((read(&apics, 1, reg::ID), read(&apics, 1, reg::DFR)), (1 << 24, u32::MAX));
    assert_eq!((read(&apics, 0, reg::SVR), read(&apics, 0, reg::LVT_TIMER)), (0xff, 0x1_0000));
    assert_eq!(read(&apics, 0, reg::VERSION) & 0xff, 0x14);
    // Disabled by software: no vectors.
    assert!(!apics.deliver(&fixed(0, DestinationMode::Physical, 0x40)));
}

#[test]
fn interrupts_nest_by_priority_class() {
    let (_, apics) = apics(1);
    let lapic = apics.lapic(0);
    for vector in [0x41, 0x45, 0x60] {
        apics.deliver(&fixed(0, DestinationMode::Physical, vector));
    }
    assert_eq!(lapic.acknowledge(), Some(0x60));
    assert_eq!((lapic.ppr(), lapic.acknowledge()), (0x60, None));
    write(&apics, 0, reg::EOI, 0);
    assert_eq!(lapic.acknowledge(), Some(0x45));
    // The same class waits; a higher one does not.
    assert_eq!(lapic.pending(), None);
    apics.deliver(&fixed(0, DestinationMode::Physical, 0x51));
    assert_eq!(lapic.acknowledge(), Some(0x51));
    write(&apics, 0, reg::EOI, 0);
    write(&apics, 0, reg::EOI, 0);
    assert_eq!(lapic.acknowledge(), Some(0x41));
}

#[test]
fn the_task_priority_holds_interrupts_back_until_it_is_lowered() {
    let (recorder, apics) = apics(1);
    apics.lapic(0).set_task_priority(5);
    assert_eq!(read(&apics, 0, reg::TPR), 0x50);
    apics.deliver(&fixed(0, DestinationMode::Physical, 0x5f));
    assert_eq!(apics.lapic(0).pending(), None);
    recorder.interrupts.lock().unwrap().clear();
    apics.lapic(0).set_task_priority(4);
    assert_eq!(*recorder.interrupts.lock().unwrap(), [0]);
    assert_eq!(apics.lapic(0).acknowledge(), Some(0x5f));
}

#[test]
fn an_eoi_wakes_for_what_waited_behind_it() {
    let (recorder, apics) = apics(1);
    apics.deliver(&fixed(0, DestinationMode::Physical, 0x60));
    apics.lapic(0).acknowledge();
    apics.deliver(&fixed(0, DestinationMode::Physical, 0x40));
    recorder.interrupts.lock().unwrap().clear();
    write(&apics, 0, reg::EOI, 0);
    assert_eq!(*recorder.interrupts.lock().unwrap(), [0]);
}

#[test]
fn shorthands_reach_self_all_and_others() {
    for (low, expected) in [(0x4_4040, vec![1]), (0x8_4040, vec![0, 1, 2]), (0xc_4040, vec![0, 2])] {
        let (_, apics) = apics(3);
        ipi(&apics, 1, 0, low);
        assert_eq!(pending(&apics), expected, "{low:#x}");
    }
}

#[test]
fn physical_destinations_name_one_or_all() {
    let (_, apics) = apics(3);
    ipi(&apics, 0, 2, 0x4040);
    assert_eq!(pending(&apics), [2]);
    ipi(&apics, 0, 0xff, 0x4041);
    assert_eq!(pending(&apics), [0, 1, 2]);
    ipi(&apics, 0, 77, 0x4042);
}

#[test]
fn flat_logical_destinations_are_bit_masks() {
    let (_, apics) = apics(3);
    for vcpu in 0..3 {
        write(&apics, vcpu, reg::LDR, 1 << (24 + vcpu));
    }
    ipi(&apics, 0, 0b110, 0x4840);
    assert_eq!(pending(&apics), [1, 2]);
}

#[test]
fn cluster_logical_destinations_are_a_cluster_and_a_mask() {
    let (_, apics) = apics(3);
    for (vcpu, ldr) in [(0, 0x11), (1, 0x12), (2, 0x21)] {
        write(&apics, vcpu, reg::DFR, 0x0fff_ffff);
        write(&apics, vcpu, reg::LDR, ldr << 24);
    }
    assert!(apics.deliver(&fixed(0x12, DestinationMode::Logical, 0x40)));
    assert_eq!(pending(&apics), [1]);
    assert!(apics.deliver(&fixed(0xf1, DestinationMode::Logical, 0x40)));
    assert_eq!(pending(&apics), [0, 1, 2]);
}

#[test]
fn the_lowest_priority_takes_it_and_equals_take_turns() {
    let (_, apics) = apics(3);
    apics.lapic(0).set_task_priority(3);
    let message = Message {
        destination: 0xff,
        mode: DestinationMode::Physical,
        delivery: DeliveryMode::LowestPriority,
        vector: 0x90,
        trigger: Trigger::Edge,
    };
    let message = Message { destination: u32::MAX, ..message };
    let mut taken = [0; 3];
    for _ in 0..30 {
        assert!(apics.deliver(&message));
        let lapic = apics.lapics().iter().find(|l| l.pending().is_some()).unwrap();
        taken[lapic.id() as usize] += 1;
        lapic.acknowledge();
        write(&apics, lapic.id(), reg::EOI, 0);
    }
    assert_eq!(taken[0], 0);
    assert!(taken[1] > 5 && taken[2] > 5, "{taken:?}");
}

#[test]
fn init_and_start_up_wait_for_the_target_in_order() {
    let (recorder, apics) = apics(2);
    ipi(&apics, 0, 1, 0x4600 | 0x12);
    ipi(&apics, 0, 1, 0xc500);
    ipi(&apics, 0, 1, 0x8500);
    let events = apics.lapic(1).take_events();
    // The start-up from before the INIT is void, and the de-assert does nothing.
    assert!(events.init && events.start_up.is_none());
    apics.lapic(1).init();
    ipi(&apics, 0, 1, 0x4600 | 0x9a);
    assert_eq!(apics.lapic(1).take_events().start_up, Some(0x9a));
    ipi(&apics, 0, 1, 0x4400);
    assert!(apics.lapic(1).take_events().nmi);
    assert!(!apics.lapic(1).has_events() && !apics.lapic(0).has_events());
    assert_eq!(recorder.events.lock().unwrap().len(), 4);
}

#[test]
fn illegal_vectors_are_recorded_as_errors() {
    let (_, apics) = apics(2);
    write(&apics, 0, reg::LVT_ERROR, 0xe0);
    ipi(&apics, 0, 1, 0x4005);
    assert_eq!(read(&apics, 0, reg::ESR), 0);
    write(&apics, 0, reg::ESR, 0);
    assert_eq!(read(&apics, 0, reg::ESR), 1 << 5);
    assert_eq!(apics.lapic(0).acknowledge(), Some(0xe0));
    apics.deliver(&fixed(1, DestinationMode::Physical, 3));
    write(&apics, 1, reg::ESR, 0);
    assert_eq!(read(&apics, 1, reg::ESR), 1 << 6);
    // An illegal register, and an illegal error vector that must not lead to another error.
    write(&apics, 1, reg::LVT_ERROR, 2);
    write(&apics, 1, 0x3f, 0);
    write(&apics, 1, reg::ESR, 0);
    assert_eq!(read(&apics, 1, reg::ESR), 1 << 7);
}

#[test]
fn x2apic_is_entered_and_left_only_as_the_manual_allows() {
    let (_, apics) = apics(20);
    let (disabled, xapic, x2apic) = (0xfee0_0000u64, 0xfee0_0800, 0xfee0_0c00);
    assert!(apics.msr_read(17, 0x802).is_err());
    assert!(apics.msr_write(17, 0x1b, 0xfee0_0400).is_err());
    apics.msr_write(17, 0x1b, x2apic).unwrap();
    assert_eq!(apics.lapic(17).mmio_page(), None);
    assert_eq!(apics.msr_read(17, 0x802), Ok(17));
    assert_eq!(apics.msr_read(17, 0x80d), Ok(1 << 16 | 1 << 1));
    assert!(apics.msr_write(17, 0x1b, xapic).is_err());
    apics.msr_write(17, 0x1b, disabled).unwrap();
    assert!(apics.msr_write(17, 0x1b, x2apic).is_err());
    apics.msr_write(17, 0x1b, xapic).unwrap();
    assert!(apics.msr_write(17, 0x1b, 1 << 40 | xapic).is_err());
    // Moving the page.
    apics.msr_write(17, 0x1b, 0xfed0_0800).unwrap();
    assert_eq!(apics.lapic(17).mmio_page(), Some(0xfed0_0000));
}

#[test]
fn x2apic_registers_refuse_reserved_bits_and_directions() {
    let (_, apics) = apics(2);
    for vcpu in 0..2 {
        apics.msr_write(vcpu, 0x1b, 0xfee0_0c00).unwrap();
    }
    for (msr, value) in [
        (0x80b, 1),
        (0x828, 1),
        (0x808, 0x100),
        (0x830, 1 << 13),
        (0x802, 0),
        (0x80d, 0),
        (0x810, 0),
        (0x80e, 0),
    ] {
        assert!(apics.msr_write(0, msr, value).is_err(), "{msr:#x}");
    }
    for msr in [0x80b, 0x83f, 0x80e, 0x831, 0x8ff] {
        assert!(apics.msr_read(0, msr).is_err(), "{msr:#x}");
    }
    apics.msr_write(0, 0x83f, 0x77).unwrap();
    assert_eq!(apics.lapic(0).acknowledge(), Some(0x77));
    apics.msr_write(0, 0x80b, 0).unwrap();
    // Logical: cluster 0, bit 1. Then broadcast to all but self.
    apics.msr_write(0, 0x830, 2 << 32 | 0x4840).unwrap();
    assert_eq!(pending(&apics), [1]);
    apics.msr_write(0, 0x830, u64::from(u32::MAX) << 32 | 0x4041).unwrap();
    assert_eq!(pending(&apics), [0, 1]);
}

#[test]
fn msis_carry_destination_vector_and_mode() {
    let (_, apics) = apics(3);
    apics.send(Msi { address: 0xfee0_2000, data: 0x55 });
    assert_eq!(apics.lapic(2).acknowledge(), Some(0x55));
    apics.send(Msi { address: 0xfee0_1000, data: 0x400 });
    assert!(apics.lapic(1).take_events().nmi);
    apics.send(Msi { address: 0x1_fee0_1000, data: 0x55 });
    apics.send(Msi { address: 0xfee0_1000, data: 0x355 });
    assert!(pending(&apics).is_empty());
}

#[test]
fn the_one_shot_timer_counts_down_and_fires_once() {
    let (recorder, apics) = apics(1);
    write(&apics, 0, reg::DIVIDE, 0b1011);
    write(&apics, 0, reg::LVT_TIMER, 0x40);
    write(&apics, 0, reg::INITIAL_COUNT, 1000);
    assert_eq!(apics.lapic(0).next_deadline(), Some(1000));
    assert_eq!(recorder.deadlines.lock().unwrap().last(), Some(&(TimerId(0), Some(1000))));
    recorder.clock.set(400);
    assert_eq!(read(&apics, 0, reg::CURRENT_COUNT), 600);
    recorder.clock.set(1500);
    apics.advance(TimerId(0), 1500);
    assert_eq!(apics.lapic(0).acknowledge(), Some(0x40));
    assert_eq!((read(&apics, 0, reg::CURRENT_COUNT), apics.lapic(0).next_deadline()), (0, None));
}

#[test]
fn the_divider_slows_the_count_and_a_change_goes_on_from_there() {
    let (recorder, apics) = apics(1);
    write(&apics, 0, reg::LVT_TIMER, 0x40);
    write(&apics, 0, reg::INITIAL_COUNT, 1000);
    assert_eq!(apics.lapic(0).next_deadline(), Some(2000));
    recorder.clock.set(1000);
    write(&apics, 0, reg::DIVIDE, 0b1010);
    assert_eq!(read(&apics, 0, reg::CURRENT_COUNT), 500);
    assert_eq!(apics.lapic(0).next_deadline(), Some(1000 + 500 * 128));
}

#[test]
fn the_periodic_timer_keeps_its_grid_and_skips_late_ticks() {
    let (recorder, apics) = apics(1);
    write(&apics, 0, reg::DIVIDE, 0b1011);
    write(&apics, 0, reg::LVT_TIMER, 0x2_0040);
    write(&apics, 0, reg::INITIAL_COUNT, 1_000_000);
    recorder.clock.set(3_400_000);
    apics.advance(TimerId(0), 3_400_000);
    assert_eq!(apics.lapic(0).acknowledge(), Some(0x40));
    write(&apics, 0, reg::EOI, 0);
    assert_eq!(apics.lapic(0).acknowledge(), None);
    assert_eq!(apics.lapic(0).next_deadline(), Some(4_000_000));
    assert_eq!(read(&apics, 0, reg::CURRENT_COUNT), 600_000);
    write(&apics, 0, reg::INITIAL_COUNT, 0);
    assert_eq!(apics.lapic(0).next_deadline(), None);
}

#[test]
fn a_period_of_one_tick_does_not_make_a_deadline_every_nanosecond() {
    let (recorder, apics) = apics(1);
    write(&apics, 0, reg::LVT_TIMER, 0x2_0040);
    write(&apics, 0, reg::INITIAL_COUNT, 1);
    recorder.clock.set(1_000_000);
    apics.advance(TimerId(0), 1_000_000);
    assert!(apics.lapic(0).next_deadline().unwrap() >= 1_010_000);
}

#[test]
fn a_tsc_deadline_fires_when_the_tsc_reaches_it() {
    let (recorder, apics) = apics(1);
    apics.msr_write(0, 0x6e0, 5000).unwrap();
    assert_eq!(apics.msr_read(0, 0x6e0), Ok(0), "ignored in another mode");
    write(&apics, 0, reg::LVT_TIMER, 0x4_00ec);
    apics.msr_write(0, 0x6e0, 5001).unwrap();
    assert_eq!(apics.lapic(0).next_deadline(), Some(2501));
    assert_eq!(read(&apics, 0, reg::CURRENT_COUNT), 0);
    recorder.clock.set(2501);
    apics.advance(TimerId(0), 2501);
    assert_eq!(apics.lapic(0).acknowledge(), Some(0xec));
    assert_eq!(apics.msr_read(0, 0x6e0), Ok(0));
    write(&apics, 0, reg::EOI, 0);
    // One in the past fires at once; writing 0 disarms.
    apics.msr_write(0, 0x6e0, 1).unwrap();
    assert_eq!(apics.lapic(0).acknowledge(), Some(0xec));
    apics.msr_write(0, 0x6e0, 9000).unwrap();
    apics.msr_write(0, 0x6e0, 0).unwrap();
    assert_eq!(apics.lapic(0).next_deadline(), None);
    // Another mode disarms too.
    apics.msr_write(0, 0x6e0, 9000).unwrap();
    write(&apics, 0, reg::LVT_TIMER, 0xec);
    assert_eq!((apics.msr_read(0, 0x6e0), apics.lapic(0).next_deadline()), (Ok(0), None));
}

#[test]
fn a_tsc_deadline_moves_with_the_tsc_unless_it_is_over() {
    let (recorder, apics) = apics(1);
    let write_tsc = |offset| {
        recorder.tsc_offset.store(offset, SeqCst);
        apics.lapic(0).tsc_changed();
    };
    write(&apics, 0, reg::LVT_TIMER, 0x4_00ec);
    apics.msr_write(0, 0x6e0, 9000).unwrap();
    write_tsc(1000);
    assert_eq!(recorder.deadlines.lock().unwrap().last(), Some(&(TimerId(0), Some(4000))));
    // The timer thread is late: the deadline has passed, and the TSC is set back before anybody looked.
    recorder.clock.set(5000);
    write_tsc(0u64.wrapping_sub(10_000));
    assert_eq!(apics.lapic(0).acknowledge(), Some(0xec));
    assert_eq!((apics.msr_read(0, 0x6e0), apics.lapic(0).next_deadline()), (Ok(0), None));
}

#[test]
fn a_masked_timer_needs_nobody_and_fires_if_unmasked_in_time() {
    let (recorder, apics) = apics(1);
    write(&apics, 0, reg::LVT_TIMER, 0x1_0040);
    write(&apics, 0, reg::INITIAL_COUNT, 1000);
    assert_eq!(apics.lapic(0).next_deadline(), None);
    write(&apics, 0, reg::LVT_TIMER, 0x40);
    assert_eq!(apics.lapic(0).next_deadline(), Some(2000));
    write(&apics, 0, reg::LVT_TIMER, 0x1_0040);
    recorder.clock.set(3000);
    write(&apics, 0, reg::LVT_TIMER, 0x40);
    assert_eq!(apics.lapic(0).pending(), None, "it expired while masked");
}

#[test]
fn software_disable_masks_the_local_vector_table() {
    let (_, apics) = apics(1);
    write(&apics, 0, reg::LVT_TIMER, 0x40);
    write(&apics, 0, reg::SVR, 0xff);
    assert_eq!(read(&apics, 0, reg::LVT_TIMER), 0x1_0040);
    write(&apics, 0, reg::LVT_TIMER, 0x41);
    assert_eq!(read(&apics, 0, reg::LVT_TIMER), 0x1_0041);
}

#[test]
fn lint1_delivers_nmi_on_its_edge() {
    let (_, apics) = apics(2);
    write(&apics, 1, 0x36, 0x400);
    apics.set_nmi(true);
    assert!(apics.lapic(1).take_events().nmi && !apics.lapic(0).take_events().nmi);
    apics.set_nmi(true);
    assert!(!apics.lapic(1).take_events().nmi);
}

#[test]
fn a_level_triggered_pin_interrupts_again_while_it_is_high() {
    let (_, apics) = apics(1);
    write(&apics, 0, 0x35, 0x8066);
    apics.set_intr(true);
    assert_eq!(apics.lapic(0).acknowledge(), Some(0x66));
    assert_ne!(read(&apics, 0, 0x35) & 1 << 14, 0);
    write(&apics, 0, reg::EOI, 0);
    assert_eq!(apics.lapic(0).acknowledge(), Some(0x66));
    apics.set_intr(false);
    write(&apics, 0, reg::EOI, 0);
    assert_eq!(apics.lapic(0).acknowledge(), None);
}

#[test]
fn a_saved_apic_goes_on_where_it_was() {
    let (recorder, apics) = apics(2);
    apics.deliver(&fixed(1, DestinationMode::Physical, 0x60));
    apics.lapic(1).acknowledge();
    apics.deliver(&fixed(1, DestinationMode::Physical, 0x40));
    write(&apics, 1, reg::LVT_TIMER, 0x2_0050);
    write(&apics, 1, reg::INITIAL_COUNT, 1_000_000);
    let section = apics.save().unwrap();
    let other = ApicBus::new(2, recorder.lapic_glue());
    other.restore(&section).unwrap();
    assert_eq!(other.save().unwrap(), section);
    assert_eq!(other.lapic(1).next_deadline(), Some(2_000_000));
    write(&other, 1, reg::EOI, 0);
    assert_eq!(other.lapic(1).acknowledge(), Some(0x40));
    assert!(ApicBus::new(3, recorder.lapic_glue()).restore(&section).is_err());
}
