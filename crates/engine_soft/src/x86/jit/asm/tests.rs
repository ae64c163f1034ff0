//! What each form encodes to, by a disassembler.

use super::*;
use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter};

fn text(write: impl FnOnce(&mut Asm)) -> String {
    let mut asm = Asm::new(0x1000);
    write(&mut asm);
    asm.finish(|_| {});
    let bytes = asm.code().to_vec();
    let mut formatter = GasFormatter::new();
    formatter.options_mut().set_uppercase_hex(false);
    let mut all = Vec::new();
    for instruction in &mut Decoder::with_ip(64, &bytes, 0x1000, DecoderOptions::NONE) {
        let mut line = String::new();
        formatter.format(&instruction, &mut line);
        all.push(line);
    }
    all.join("; ")
}

#[test]
fn every_form_decodes_to_what_was_asked_for() {
    let r10 = Reg(10);
    let cases: Vec<(String, &str)> = vec![
        (text(|a| a.rotated_right(Reg(11), r10, 7)), "rorx $7,%r10d,%r11d"),
        (text(|a| a.rotated_right(RAX, r10, 7)), "rorx $7,%r10d,%eax"),
        (text(|a| a.rotated_right(Reg(11), RDX, 7)), "rorx $7,%edx,%r11d"),
        (text(|a| a.load(Size::Qword, r10, Mem::Field(0x1234))), "mov %gs:0x1234,%r10"),
        (text(|a| a.load(Size::Dword, RAX, Mem::Base(Reg(12), 0))), "mov (%r12),%eax"),
        (text(|a| a.load(Size::Qword, RAX, Mem::Base(Reg(13), 0))), "mov (%r13),%rax"),
        (text(|a| a.store(Size::Byte, Mem::Base(RSP, 8), RSI)), "mov %sil,8(%rsp)"),
        (text(|a| a.store(Size::Word, Mem::Field(8), RAX)), "mov %ax,%gs:8"),
        (text(|a| a.lea(Size::Qword, r10, Mem::Indexed(RBP, Reg(9), 3, -5))), "lea -5(%rbp,%r9,8),%r10"),
        (text(|a| a.lea(Size::Qword, r10, Mem::Scaled(Reg(12), 2, 64))), "lea 0x40(,%r12,4),%r10"),
        (text(|a| a.alu_immediate(Size::Qword, Alu::Cmp, r10, 4088)), "cmp $0xff8,%r10"),
        (text(|a| a.alu_immediate(Size::Dword, Alu::And, r10, 0x7fe0)), "and $0x7fe0,%r10d"),
        (text(|a| a.alu_load(Size::Qword, Alu::Sub, r10, Mem::Base(Reg(11), 8))), "sub 8(%r11),%r10"),
        (text(|a| a.alu_memory_immediate(Size::Qword, Alu::Add, Mem::Field(16), 3)), "addq $3,%gs:0x10"),
        (text(|a| a.alu_memory_immediate(Size::Byte, Alu::Cmp, Mem::Field(16), 2)), "cmpb $2,%gs:0x10"),
        (text(|a| a.shr(Size::Dword, Reg(11), 7)), "shr $7,%r11d"),
        (text(|a| a.load_immediate(r10, 5)), "mov $5,%r10d"),
        (text(|a| a.load_immediate(r10, 1 << 40)), "movabs $0x10000000000,%r10"),
        (text(|a| a.store_immediate(Size::Qword, Mem::Base(r10, 0), -1)), "movq $0xffffffffffffffff,(%r10)"),
        (text(|a| a.jump_indirect(Mem::Base(Reg(11), 16))), "jmpq *0x10(%r11)"),
        (text(|a| a.call_indirect(Mem::Field(64))), "callq *%gs:0x40"),
        (text(|a| a.load_ymm_field(9, 0x20)), "vmovaps %gs:0x20,%ymm9"),
        (text(|a| a.store_ymm_field(0x20, 3)), "vmovaps %ymm3,%gs:0x20"),
        (text(|a| a.load_xmm(11, Mem::Field(0x20))), "movaps %gs:0x20,%xmm11"),
        (text(|a| a.movzx_word(RAX, Mem::Field(2))), "movzwl %gs:2,%eax"),
        (text(|a| a.test_low_byte(r10, 15)), "test $0xf,%r10b"),
        (text(|a| a.jump_to(0x1000)), "jmp 0x0000000000001000"),
        (text(|a| a.flags_to_ax()), "lahf; seto %al"),
    ];
    for (got, wanted) in cases {
        assert_eq!(got, wanted);
    }
}

#[test]
fn a_label_is_reached_from_before_and_after() {
    let mut asm = Asm::new(0);
    let label = asm.label();
    asm.jump(label);
    asm.bind(label);
    asm.jump_if(Condition::NE, label);
    asm.finish(|at| panic!("all is one part, and {at} leads out of it"));
    assert_eq!(asm.code(), [0xe9, 0, 0, 0, 0, 0x0f, 0x85, 0xfa, 0xff, 0xff, 0xff]);
}

#[test]
fn what_leads_from_one_part_to_the_other_is_told() {
    let mut asm = Asm::new(0);
    let (first, second) = (asm.label(), asm.label());
    asm.bind(first);
    asm.jump(first);
    asm.jump(second);
    asm.begin_second_part();
    asm.bind(second);
    asm.jump(second);
    asm.jump(first);
    let mut across = Vec::new();
    asm.finish(|at| across.push(at));
    assert_eq!((asm.second_part(), across), (10, vec![6, 16]));
}
