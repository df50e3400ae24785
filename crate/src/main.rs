//! The command line of lowbit.
fn main() {}
