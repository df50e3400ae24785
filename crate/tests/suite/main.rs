//! One binary for all integration tests: golden numbers, loading, the command line.

mod bad_checkpoint;
mod bad_input;
mod command_line;
mod divergence;
mod fixture;
mod floors;
mod layouts;
mod left_by_training;
mod parity;
mod pickled;
mod quantized;
mod reference;
mod repetition;
mod study;
mod training;
