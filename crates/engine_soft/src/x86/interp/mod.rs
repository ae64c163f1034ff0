//! The interpreter: precise, complete, and the reference for every faster engine.
//!
//! Guest bytes are decoded once into blocks of operations, each a function pointer with its operands; executing
//! is calling them in turn. Reading order: [`op`], [`cpu`], `run`, [`decode`] and [`select`], [`access`], [`ops`],
//! [`cache`], [`shared`].

pub mod access;
pub mod cache;
mod core;
pub mod cpu;
pub mod decode;
mod host;
pub mod op;
pub mod ops;
mod run;
pub mod select;
pub mod shared;
mod turns;
