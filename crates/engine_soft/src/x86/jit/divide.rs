//! DIV and IDIV, which trap where the quotient does not fit.

use iced_x86::{Mnemonic, OpKind, Register};

use super::access::HOST;
use super::asm::{Alu, Condition, Mem, RAX, RDX, Size};
use super::flags::Effect;
use super::plan::Operand;
use super::rewrite::{self, S0, S1, host_of};
use super::stubs::gpr;
use super::translate::Translation;

impl Translation<'_> {
    /// DIV and IDIV natively where the quotient surely fits: the high half below the divisor, or for IDIV a
    /// dividend that is one sign-extended register and a divisor that is neither 0 nor -1.
    pub(super) fn write_divide(&mut self, i: usize, memory: Option<Operand>) {
        let instruction = self.instructions[i];
        let wide = memory.map_or(instruction.op0_register().size(), |operand| operand.size as usize) == 8;
        let (size, like) = if wide { (Size::Qword, Register::RAX) } else { (Size::Dword, Register::EAX) };
        let home = match memory {
            None => host_of(rewrite::number(instruction.op0_register())),
            Some(_) => None,
        };
        let divisor = home.unwrap_or(S1);
        let mut host = instruction;
        host.set_op0_kind(OpKind::Register);
        host.set_op0_register(rewrite::sized(divisor, like));
        let Some(bytes) = self.encoded(&host) else { return self.write_handler(i) };
        let slow = self.asm.label();
        self.clobber(i);
        match memory {
            None if home.is_none() => {
                self.asm.load(size, S1, gpr(rewrite::number(instruction.op0_register())));
            }
            None => {}
            Some(operand) => {
                self.write_operand_address(&instruction, operand.size, slow);
                self.write_check(operand, slow);
                self.write_load_field(S1, HOST);
                self.asm.load(size, S1, Mem::Indexed(S0, S1, 0, 0));
            }
        }
        if instruction.mnemonic() == Mnemonic::Div {
            self.asm.alu(size, Alu::Cmp, RDX, divisor);
            self.asm.jump_if(Condition::AE, slow);
        } else {
            self.asm.mov(size, S0, RAX);
            self.asm.sar(size, S0, if size == Size::Qword { 63 } else { 31 });
            self.asm.alu(size, Alu::Cmp, S0, RDX);
            self.asm.jump_if(Condition::NE, slow);
            self.asm.lea(size, S0, Mem::Base(divisor, 1));
            self.asm.alu_immediate(size, Alu::Cmp, S0, 1);
            self.asm.jump_if(Condition::BE, slow);
        }
        self.asm.raw(&bytes);
        self.flags_after(i, Effect::of(&instruction));
        self.cold_handler(i, slow);
    }
}
