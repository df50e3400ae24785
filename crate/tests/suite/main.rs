//! One binary for all integration tests: golden numbers, loading, the command line.

mod command_line;
mod floors;
mod parity;
mod reference;
mod study;
