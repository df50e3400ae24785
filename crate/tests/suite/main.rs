//! One binary for all integration tests: golden numbers, loading, the command line.

mod bad_checkpoint;
mod bad_input;
mod command_line;
mod divergence;
mod ends;
mod falsified;
mod fixture;
mod floors;
mod identity;
mod layouts;
mod left_by_training;
mod limits;
mod nonfinite;
mod parity;
mod pickled;
mod quantized;
mod readings;
mod reference;
mod repetition;
mod report;
mod runs;
mod saving;
mod study;
mod texts;
mod training;
mod transformers;
