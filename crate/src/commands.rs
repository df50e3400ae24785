//! What each command does: settings from file and flags, then one verb of the library.

use crate::args::{self, Args, Command, Measuring, Recording, Source};
use crate::flags::over;
use crate::report::{comparison, report};
use clap::Args as Flags;
use lowbit::error::{Error, Result};
use lowbit::figure;
use lowbit::frame::Frame;
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
        Command::Ppl(flags) => record("ppl", &set::<Perplexity>(&flags)?, &flags),
        Command::Divergence(flags) => record("divergence", &set::<Divergence>(&flags)?, &flags),
        Command::Sqnr(flags) => record("sqnr", &set::<Sqnr>(&flags)?, &flags),
        Command::Drift(flags) => record("drift", &set::<Drift>(&flags)?, &flags),
        Command::Outliers(flags) => record("outliers", &set::<Outliers>(&flags)?, &flags),
        Command::Stability(flags) => record("stability", &set::<Stability>(&flags)?, &flags),
        Command::Sensitivity(flags) => record("sensitivity", &set::<Sensitivity>(&flags)?, &flags),
        Command::Context(flags) => record("context", &set::<LongContext>(&flags)?, &flags),
        Command::Passkey(flags) => record("passkey", &set::<Passkey>(&flags)?, &flags),
        Command::Cost(flags) => {
            let mut cost: Cost = set(&flags)?;
            cost.threads = flags.recording.threads.or(cost.threads);
            record("cost", &cost, &flags)
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
            let mut model = load_for(&model, Some(&out))?;
            model.training_length = training_length.or(model.training_length);
            model.save(&out)?;
            println!("wrote {}", out.display());
            Ok(())
        }
    }
}

fn settings<T: Default + DeserializeOwned>(path: Option<&Path>) -> Result<T> {
    path.map_or_else(|| Ok(T::default()), lowbit::settings::read)
}

/// The settings of a measurement: defaults, the file's, those of the flags.
fn set<M: Default + Serialize + DeserializeOwned>(flags: &Measuring<impl Flags + Serialize>) -> Result<M> {
    over(&settings(flags.recording.config.as_deref())?, &flags.settings)
}

fn threads(count: Option<usize>) -> Result<()> {
    count.map_or(Ok(()), lowbit::set_threads)
}

fn load(source: &Source) -> Result<Model> {
    load_for(source, None)
}

/// Loads a model that is to be saved in the end: a folder that refuses it does so before it is quantized.
fn load_for(source: &Source, out: Option<&Path>) -> Result<Model> {
    let dtype = source.dtype.as_deref().map(parse_dtype).transpose()?;
    let how =
        Loading { dtype, device: Some(parse_device(&source.device)?), revision: source.revision.clone() };
    let model = Model::load_with(&source.model, &how)?;
    out.map_or(Ok(()), |out| model.check_save(out))?;
    match &source.scheme {
        Some(scheme) => model.quantized_with(&scheme.parse()?, &quantizing(source)),
        None => Ok(model),
    }
}

fn quantizing(source: &Source) -> Quantizing {
    let mut calibration = source.calibration.as_ref().map_or_else(Calibration::default, Calibration::of);
    calibration.samples = source.calibration_samples.unwrap_or(calibration.samples);
    calibration.length = source.calibration_length.unwrap_or(calibration.length);
    Quantizing { calibration, backend: if source.simulate { Backend::Fake } else { Backend::Packed } }
}

fn quantize(source: &Source, out: &Path) -> Result<()> {
    if source.scheme.is_none() {
        return Err(Error::input("no scheme is named").hint("add one, such as --scheme w4a8-g64-gptq"));
    }
    let model = load_for(source, Some(out))?;
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

fn record<M: Measure>(name: &str, measure: &M, flags: &Measuring<impl Flags>) -> Result<()> {
    let (source, recording) = (&flags.source, &flags.recording);
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
    training.corpus = flags.corpus.clone().unwrap_or(training.corpus);
    training.steps = flags.steps.unwrap_or(training.steps);
    training.seed = flags.seed.unwrap_or(training.seed);
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
