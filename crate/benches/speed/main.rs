//! How fast the kernels and a model are, and what share that is of what this machine can do at most.
//!
//! `cargo bench` prints a table in Markdown at the end; `cargo bench -- gemv` restricts it to names that contain that,
//! `--save-baseline NAME` and `--baseline NAME` compare two states of the code, and with `LOWBIT_RECORD=NAME` in the environment the
//! cases become a run of that name. Before a case is timed, its result is
//! held to its definition; a wrong one ends the run, so that no speed of it is printed.

mod ceilings;
mod check;
mod chunk;
mod experts;
mod mixer;
mod models;
mod products;
mod table;

use criterion::Criterion;
use std::time::Duration;

fn main() {
    // candle keeps a second, spinning thread pool for elementwise operations; as in the program, it has no part here.
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") }
    let criterion = Criterion::default()
        .without_plots()
        .sample_size(table::SAMPLES)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400))
        .nresamples(2000)
        .configure_from_args();
    let mut table = table::Table::new(criterion);
    products::all(&mut table);
    mixer::all(&mut table);
    chunk::all(&mut table);
    experts::all(&mut table);
    models::all(&mut table);
    table.print();
    if let Ok(name) = std::env::var("LOWBIT_RECORD") {
        table.record(&name).expect("the run can be written");
    }
}
