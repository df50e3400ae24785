//! One binary for all integration tests: golden numbers, loading, the command line.

mod floors;
mod parity;
mod reference;
