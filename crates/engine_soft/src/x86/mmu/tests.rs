use super::*;

const PAGE: u64 = 0x3000;

fn ram() -> GuestRam {
    GuestRam::new(&[(0, 0x8000)]).unwrap()
}

/// Enters the page at [`PAGE`], which without paging is not a global one.
fn touch(mmu: &mut Mmu, ram: &GuestRam) {
    mmu.place(ram, &CpuState::power_up(), PAGE, View::User, Intent::Write).unwrap();
}

fn has(mmu: &Mmu, intent: Intent) -> bool {
    mmu.allows(PAGE, View::User, intent)
}

#[test]
fn an_address_space_that_is_kept_finds_its_pages_again_and_others_do_not() {
    let (ram, mut mmu) = (ram(), Mmu::new(36));
    mmu.switch(1, false);
    touch(&mut mmu, &ram);
    mmu.switch(2, true);
    assert!(!has(&mmu, Intent::Read));
    mmu.switch(1, true);
    assert!(has(&mmu, Intent::Read) && has(&mmu, Intent::Write));
    mmu.switch(1, true);
    assert!(has(&mmu, Intent::Read));
    mmu.switch(1, false);
    assert!(!has(&mmu, Intent::Read));
}

#[test]
fn what_is_flushed_does_not_come_back() {
    let flushes: [fn(&mut Mmu); 4] =
        [Mmu::flush_all, Mmu::flush_non_global, |mmu| mmu.flush_other(1), |mmu| mmu.switch(1, false)];
    for (n, flush) in flushes.into_iter().enumerate() {
        let (ram, mut mmu) = (ram(), Mmu::new(36));
        mmu.switch(1, false);
        touch(&mut mmu, &ram);
        mmu.switch(2, true);
        flush(&mut mmu);
        mmu.switch(2, true);
        mmu.switch(1, true);
        assert!(!has(&mmu, Intent::Read), "flush {n}");
    }
}

#[test]
fn a_page_flushed_before_the_switch_stays_away() {
    let (ram, mut mmu) = (ram(), Mmu::new(36));
    mmu.switch(1, false);
    touch(&mut mmu, &ram);
    mmu.flush_page(PAGE);
    mmu.switch(2, true);
    mmu.switch(1, true);
    assert!(!has(&mmu, Intent::Read));
}

#[test]
fn what_was_entered_under_an_unknown_pcid_is_nobodys() {
    let (ram, mut mmu) = (ram(), Mmu::new(36));
    touch(&mut mmu, &ram);
    mmu.switch(1, true);
    assert!(!has(&mmu, Intent::Read));
    mmu.switch(0, true);
    assert!(!has(&mmu, Intent::Read));
}

#[test]
fn permissions_to_store_are_taken_back_from_all_address_spaces() {
    let (ram, mut mmu) = (ram(), Mmu::new(36));
    mmu.switch(1, false);
    touch(&mut mmu, &ram);
    mmu.switch(2, true);
    mmu.revoke_writes();
    mmu.switch(1, true);
    assert!(has(&mmu, Intent::Read) && !has(&mmu, Intent::Write));
}

#[test]
fn a_user_whose_accesses_are_looked_at_finds_no_page_until_they_are_not() {
    let (ram, mut mmu) = (ram(), Mmu::new(36));
    touch(&mut mmu, &ram);
    mmu.place(&ram, &CpuState::power_up(), PAGE, View::Kernel, Intent::Read).unwrap();
    mmu.close_user_view(true);
    assert!(!has(&mmu, Intent::Read) && !has(&mmu, Intent::Write));
    touch(&mut mmu, &ram);
    assert!(!has(&mmu, Intent::Read) && mmu.allows(PAGE, View::Kernel, Intent::Read));
    mmu.close_user_view(false);
    touch(&mut mmu, &ram);
    assert!(has(&mmu, Intent::Read) && has(&mmu, Intent::Write));
}
