//! What each command does: settings from file and flags, then one verb of the library.

use crate::args::{self, Args, Command, Recording, Source};
use lowbit::error::{Error, Result};
use lowbit::figure;
use lowbit::frame::{Comparison, Frame};
use lowbit::layer::linear::Weight;
use lowbit::measure::{
    Measure, context::LongContext, cost::Cost, divergence::Divergence, drift::Drift, outliers::Outliers,
    passkey::Passkey, perplexity::Perplexity, sensitivity::Sensitivity, sqnr::Sqnr, stability::Stability,
};
use lowbit::model::quantization::Backend;
use lowbit::model::{Loading, Model, parse_device, parse_dtype};
use lowbit::quantize::{Calibration, Quantizing, Scheme};
use lowbit::record::{Run, runs_folder};
use lowbit::study::Study;
use lowbit::train::Training;
use serde::{Serialize, de::DeserializeOwned};
use std::path::{Path, PathBuf};

/// Carries out one command.
pub fn run(args: Args) -> Result<()> {
    lowbit::progress::set_quiet(args.quiet);
    match args.command {
        Command::Reproduce(flags) => reproduce(&flags),
        Command::Ppl(flags) => {
            let mut m: Perplexity = settings(flags.recording.config.as_deref())?;
            let places = (&mut m.corpus, &mut m.split, &mut m.seq_len, &mut m.stride, &mut m.max_tokens);
            windows(flags.windows, places);
            record("ppl", &m, &flags.source, &flags.recording)
        }
        Command::Divergence(flags) => {
            let mut m: Divergence = settings(flags.recording.config.as_deref())?;
            let places = (&mut m.corpus, &mut m.split, &mut m.seq_len, &mut m.stride, &mut m.max_tokens);
            windows(flags.windows, places);
            m.reference = flags.reference.or(m.reference);
            record("divergence", &m, &flags.source, &flags.recording)
        }
        Command::Sqnr(flags) => {
            let mut m: Sqnr = settings(flags.recording.config.as_deref())?;
            corpus(flags.corpus, flags.split, &mut m.corpus, &mut m.split);
            set(&mut m.seq_len, flags.seq_len);
            m.max_tokens = flags.max_tokens.or(m.max_tokens);
            m.reference = flags.reference.or(m.reference);
            record("sqnr", &m, &flags.source, &flags.recording)
        }
        Command::Drift(flags) => {
            let mut m: Drift = settings(flags.recording.config.as_deref())?;
            corpus(flags.corpus, flags.split, &mut m.corpus, &mut m.split);
            set(&mut m.samples, flags.samples);
            set(&mut m.length, flags.length);
            m.reference = flags.reference.or(m.reference);
            record("drift", &m, &flags.source, &flags.recording)
        }
        Command::Outliers(flags) => {
            let mut m: Outliers = settings(flags.recording.config.as_deref())?;
            corpus(flags.corpus, flags.split, &mut m.corpus, &mut m.split);
            set(&mut m.seq_len, flags.seq_len);
            set(&mut m.top_share, flags.top_share);
            m.max_tokens = flags.max_tokens.or(m.max_tokens);
            record("outliers", &m, &flags.source, &flags.recording)
        }
        Command::Stability(flags) => {
            let mut m: Stability = settings(flags.recording.config.as_deref())?;
            corpus(flags.corpus, flags.split, &mut m.corpus, &mut m.split);
            set(&mut m.lengths, flags.lengths);
            set(&mut m.prompts, flags.prompts);
            set(&mut m.gen_len, flags.gen_len);
            m.reference = flags.reference.or(m.reference);
            record("stability", &m, &flags.source, &flags.recording)
        }
        Command::Sensitivity(flags) => {
            let mut m: Sensitivity = settings(flags.recording.config.as_deref())?;
            corpus(flags.corpus, flags.split, &mut m.corpus, &mut m.split);
            set(&mut m.schemes, flags.schemes);
            set(&mut m.grain, flags.grain.map(|name| name.parse()).transpose()?);
            set(&mut m.seq_len, flags.seq_len);
            m.max_tokens = flags.max_tokens.or(m.max_tokens);
            record("sensitivity", &m, &flags.source, &flags.recording)
        }
        Command::Context(flags) => {
            let mut m: LongContext = settings(flags.recording.config.as_deref())?;
            corpus(flags.corpus, flags.split, &mut m.corpus, &mut m.split);
            set(&mut m.lengths, flags.lengths);
            m.max_tokens = flags.max_tokens.or(m.max_tokens);
            m.reference = flags.reference.or(m.reference);
            record("context", &m, &flags.source, &flags.recording)
        }
        Command::Passkey(flags) => {
            let mut measure: Passkey = settings(flags.recording.config.as_deref())?;
            set(&mut measure.lengths, flags.lengths);
            set(&mut measure.trials, flags.trials);
            set(&mut measure.depths, flags.depths);
            set(&mut measure.digits, flags.digits);
            set(&mut measure.seed, flags.seed);
            record("passkey", &measure, &flags.source, &flags.recording)
        }
        Command::Cost(flags) => {
            let mut measure: Cost = settings(flags.recording.config.as_deref())?;
            set(&mut measure.lengths, flags.lengths);
            set(&mut measure.gen_len, flags.gen_len);
            set(&mut measure.repetitions, flags.repetitions);
            set(&mut measure.seed, flags.seed);
            measure.threads = flags.recording.threads.or(measure.threads);
            record("cost", &measure, &flags.source, &flags.recording)
        }
        Command::Quantize { model, out } => quantize(&model, &out),
        Command::Schemes => {
            println!("{}", schemes());
            Ok(())
        }
        Command::Train(flags) => train(&flags),
        Command::Plots { run } => plots(&run),
        Command::Compare { runs, baseline } => {
            println!("{}", comparison(&Frame::load_all(&runs)?, baseline.as_deref())?);
            Ok(())
        }
        Command::Info { model, linears } => info(&model, linears),
        Command::Convert { model, out, training_length } => {
            let mut model = load(&model)?;
            model.training_length = training_length.or(model.training_length);
            model.save(&out)?;
            println!("wrote {}", out.display());
            Ok(())
        }
    }
}

fn set<T>(value: &mut T, flag: Option<T>) {
    if let Some(flag) = flag {
        *value = flag;
    }
}

/// Where a measurement over a text keeps what the flags say of its windows.
type Places<'a> =
    (&'a mut PathBuf, &'a mut Option<String>, &'a mut usize, &'a mut usize, &'a mut Option<usize>);

fn windows(flags: args::Windows, (path, split, seq_len, stride, max_tokens): Places) {
    corpus(flags.corpus, flags.split, path, split);
    set(seq_len, flags.seq_len);
    set(stride, flags.stride.or(flags.seq_len.map(|len| len.div_ceil(2))));
    *max_tokens = flags.max_tokens.or(*max_tokens);
}

fn corpus(
    given: Option<PathBuf>,
    given_split: Option<String>,
    path: &mut PathBuf,
    split: &mut Option<String>,
) {
    if let Some(given) = given {
        // The default split belongs to the default corpus.
        (*path, *split) = (given, None);
    }
    *split = given_split.or(split.take());
}

fn settings<T: Default + DeserializeOwned>(path: Option<&Path>) -> Result<T> {
    path.map_or_else(|| Ok(T::default()), lowbit::settings::read)
}

fn threads(count: Option<usize>) -> Result<()> {
    count.map_or(Ok(()), lowbit::set_threads)
}

fn load(source: &Source) -> Result<Model> {
    let dtype = source.dtype.as_deref().map(parse_dtype).transpose()?;
    let how =
        Loading { dtype, device: Some(parse_device(&source.device)?), revision: source.revision.clone() };
    let model = Model::load_with(&source.model, &how)?;
    match &source.scheme {
        Some(scheme) => model.quantized_with(&scheme.parse()?, &quantizing(source)),
        None => Ok(model),
    }
}

fn quantizing(source: &Source) -> Quantizing {
    let mut calibration = source.calibration.as_ref().map_or_else(Calibration::default, Calibration::of);
    set(&mut calibration.samples, source.calibration_samples);
    set(&mut calibration.length, source.calibration_length);
    Quantizing { calibration, backend: if source.simulate { Backend::Fake } else { Backend::Packed } }
}

fn quantize(source: &Source, out: &Path) -> Result<()> {
    if source.scheme.is_none() {
        return Err(Error::input("no scheme is named").hint("add one, such as --scheme w4a8-g64-gptq"));
    }
    let model = load(source)?;
    model.save(out)?;
    if let Some(report) = &model.quantization {
        println!("{report}");
    }
    println!("{:.2} MB in {}", model.bytes() as f64 / 1e6, out.display());
    Ok(())
}

/// The presets, and how names are made.
fn schemes() -> String {
    let presets = Scheme::presets();
    let width = presets.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = presets.iter().map(|(name, about)| format!("{name:width$}  {about}"));
    format!("{}\n\n{}", lines.collect::<Vec<_>>().join("\n"), Scheme::GRAMMAR)
}

/// Settings of a single measurement, as its run keeps them.
#[derive(Serialize)]
struct Resolved<'a, M> {
    model: &'a str,
    dtype: &'a str,
    scheme: Option<&'a str>,
    quantizing: Option<Quantizing>,
    device: &'a str,
    measure: &'a M,
}

fn record<M: Measure>(name: &str, measure: &M, source: &Source, recording: &Recording) -> Result<()> {
    threads(recording.threads)?;
    let model = load(source)?;
    measure.check(&model)?;
    let run = noted(Run::create_in(root(recording), name)?, recording);
    let (dtype, device) = (model.dtype.as_str(), source.device.as_str());
    let scheme = source.scheme.as_deref();
    let quantizing = scheme.map(|_| quantizing(source));
    run.write_config(&Resolved { model: &source.model, dtype, scheme, quantizing, device, measure })?;
    measure.record(&model, &run)?;
    run.finish()?;
    report(&run)
}

fn root(recording: &Recording) -> PathBuf {
    recording.runs.clone().unwrap_or_else(runs_folder)
}

fn noted(run: Run, recording: &Recording) -> Run {
    match &recording.notes {
        Some(notes) => run.notes(notes),
        None => run,
    }
}

fn reproduce(flags: &args::Reproduce) -> Result<()> {
    threads(flags.recording.threads)?;
    let name = flags.study.as_deref().unwrap_or_default();
    match &flags.check {
        Some(Some(run)) => check(run),
        Some(None) if name.is_empty() => Err(Error::input("nothing is named that could be checked")
            .hint("name a study, or a run after --check")),
        Some(None) => Study::parts(name).into_iter().try_for_each(|part| check(Path::new(part))),
        None => match &flags.recording.config {
            Some(path) => measure(lowbit::settings::read(path)?, flags),
            None => Study::parts(name)
                .into_iter()
                .try_for_each(|part| measure(Study::named_in(part, root(&flags.recording))?, flags)),
        },
    }
}

fn measure(mut study: Study, flags: &args::Reproduce) -> Result<()> {
    if let Some(model) = &flags.model {
        study.models = vec![model.clone()];
    }
    if let Some(schemes) = &flags.schemes {
        study.schemes = schemes.clone();
    }
    if flags.small {
        study = study.small();
    }
    let run = study.run_into(|| Ok(noted(study.open(root(&flags.recording))?, &flags.recording)))?;
    report(&run)
}

/// A recorded run measured again.
fn check(run: &Path) -> Result<()> {
    let check = Study::check_run(run)?;
    println!("{check}");
    check.passed()
}

fn train(flags: &args::Train) -> Result<()> {
    threads(flags.threads)?;
    let mut training: Training = settings(flags.config.as_deref())?;
    set(&mut training.corpus, flags.corpus.clone());
    set(&mut training.steps, flags.steps);
    set(&mut training.seed, flags.seed);
    let outcome = training.run(&flags.out)?;
    println!(
        "{} steps, {:.3} bits/byte on held-out text, {:.0} tokens/s; model in {}",
        outcome.steps,
        outcome.valid_bits_per_byte,
        outcome.tokens_per_s,
        outcome.model.display()
    );
    Ok(())
}

fn plots(run: &str) -> Result<()> {
    let log = Path::new(run).join("log.jsonl");
    let (frame, folder) = if log.exists() {
        (Frame::load(&log)?, Path::new(run).join("plots"))
    } else {
        (Frame::load(run)?, Run::open(run)?.plots_dir()?)
    };
    std::fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, &error))?;
    for path in figure::draw_all(&frame, &folder)? {
        println!("{}", path.display());
    }
    Ok(())
}

/// The schemes of the records beside a baseline: the one named, or the first that was recorded.
fn comparison(frame: &Frame, baseline: Option<&str>) -> Result<Comparison> {
    let first = || -> Result<_> { Ok(frame.texts("scheme")?.into_iter().flatten().next()) };
    match baseline {
        Some(baseline) => frame.compare(baseline),
        None => frame.compare(&first()?.ok_or_else(|| Error::input("the records name no scheme"))?),
    }
}

fn info(source: &Source, linears: bool) -> Result<()> {
    let model = load(source)?;
    println!("{model}");
    if linears {
        for (path, linear) in model.linears() {
            let (out, inner) = linear.weight.shape()?;
            let stored = match &linear.weight {
                Weight::Dense(weight) => weight.dtype().as_str(),
                Weight::Quantized(_) => "quantized",
            };
            println!("  {path:<44} [{out}, {inner}]  {stored}  {} bytes", linear.weight.bytes());
        }
    }
    Ok(())
}

/// The columns of each measurement's table.
const TABLES: [(&str, &[&str]); 11] = [
    (
        "perplexity",
        &["model", "scheme", "weight_bytes", "corpus", "ppl", "bits_per_byte", "n_tokens", "tokens_per_s"],
    ),
    (
        "divergence",
        &[
            "model",
            "scheme",
            "reference",
            "kl",
            "kl_low",
            "kl_high",
            "kl_q99",
            "same_top",
            "delta_bits_per_byte",
        ],
    ),
    ("sqnr", &["model", "scheme", "reference", "sqnr_db", "worst_layer", "worst_sqnr_db", "input_sqnr_db"]),
    (
        "drift",
        &[
            "model",
            "scheme",
            "reference",
            "drift_median",
            "drift_max",
            "worst_layer",
            "worst_head",
            "drift_to_predicted",
            "tau_measured",
            "tau_measured_low",
            "tau_measured_high",
        ],
    ),
    (
        "outliers",
        &[
            "model",
            "scheme",
            "role",
            "kurtosis",
            "crest",
            "channel_ratio",
            "persistence_near",
            "persistence_far",
            "persistence_fixed",
        ],
    ),
    (
        "stability",
        &[
            "model",
            "scheme",
            "reference",
            "context_length",
            "together_median",
            "never_parted",
            "repetition",
            "reference_repetition",
            "delta_entropy",
            "delta_entropy_low",
            "delta_entropy_high",
        ],
    ),
    (
        "sensitivity",
        &[
            "model",
            "probe",
            "unit",
            "delta_nll",
            "delta_nll_low",
            "delta_nll_high",
            "kl",
            "hessian",
            "fisher",
        ],
    ),
    (
        "ranking",
        &[
            "model",
            "probe",
            "units",
            "predictor",
            "tau",
            "tau_low",
            "tau_high",
            "blocks_read",
            "blocks_whole",
        ],
    ),
    (
        "context",
        &[
            "model",
            "scheme",
            "reference",
            "parts_at",
            "widens_at",
            "widening",
            "widening_low",
            "widening_high",
        ],
    ),
    (
        "passkey",
        &["model", "scheme", "context_length", "accuracy", "accuracy_low", "accuracy_high", "key_logprob"],
    ),
    (
        "cost",
        &[
            "model",
            "scheme",
            "threads",
            "phase",
            "context_length",
            "tokens_per_s",
            "first_call_s",
            "peak_bytes",
        ],
    ),
];

/// Tables and figures of a finished run.
fn report(run: &Run) -> Result<()> {
    let frame = Frame::load(run.path())?;
    for (measure, columns) in TABLES {
        // Of outliers the roles say more than the summary.
        let kind = if measure == "outliers" { "role" } else { "summary" };
        let rows = frame.filter("measure", measure)?.filter("row", kind)?;
        if rows.height() > 0 {
            println!("\n{measure}\n{}", rows.select(columns.iter().copied())?);
        }
    }
    // Where there is nothing to compare, or not with one baseline, the tables above are all.
    if let Some(comparison) = comparison(&frame, None).ok().filter(|comparison| comparison.rows.len() > 1) {
        println!("\nschemes\n{comparison}");
    }
    for warning in frame.filter("row", "summary")?.texts("warning").unwrap_or_default().into_iter().flatten()
    {
        eprintln!("lowbit: warning: {warning}");
    }
    let figures = figure::draw_all(&frame, &run.plots_dir()?)?;
    println!("\n{} figures and all readings in {}", figures.len(), run.path().display());
    Ok(())
}
