//! What each operation does. One function per operation, width and operand form; `decode` picks them.

pub mod alu;
pub mod atomic;
pub mod bits;
pub mod control;
pub mod data;
pub mod legacy;
pub mod multiply;
pub mod stack;
pub mod string;
pub mod system;
pub mod vector;

/// Unwraps an access, or ends the operation with its fault.
macro_rules! attempt {
    ($access:expr) => {
        match $access {
            Ok(value) => value,
            Err($crate::x86::interp::cpu::Fault) => return $crate::x86::interp::op::Flow::Fault,
        }
    };
}
pub(crate) use attempt;
