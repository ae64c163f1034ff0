//! Serial ports and what is at their other end.

pub mod uart16550;

pub use uart16550::{ConsoleSink, SerialInput, Uart16550};
