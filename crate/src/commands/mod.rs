//! What each command does: settings from file and flags, then one verb of the library.

mod smaller;

use crate::args::{self, Asked, Asking, Command, Measuring, Recording, Source};
use crate::finished::{failures, tell};
use crate::out::{linked, piece, say, shown};
use lowbit::corpus::Corpus;
use lowbit::error::{Error, Kind, Result};
use lowbit::figure;
use lowbit::frame::Frame;
use lowbit::layer::linear::Weight;
use lowbit::measure::Settings;
use lowbit::model::quantization::Backend;
use lowbit::model::sampling::Sampling;
use lowbit::model::tokenizer::train::train as train_tokenizer;
use lowbit::model::{Loading, Model, parse_device, parse_dtype, parse_tokenizer};
use lowbit::prune::Pruning;
use lowbit::quantize::{Calibration, Quantizing, Scheme};
use lowbit::record::{Run, runs_folder};
use lowbit::report::{Report, comparison};
use lowbit::study::Study;
use lowbit::study::ablation::Ablation;
use lowbit::train::Training;
use lowbit::warning::warn;
use serde::{Serialize, de::DeserializeOwned};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Carries out one command.
pub fn run(asked: Asked) -> Result<()> {
    lowbit::progress::set_quiet(asked.quiet);
    let command = match asked.command {
        Asking::Measuring(measuring) => return record(*measuring),
        Asking::Other(command) => *command,
    };
    match command {
        Command::Reproduce(flags) => reproduce(&flags),
        Command::Quantize { model, out } => smaller::quantize(&model, &out),
        Command::Prune { model, out, keep, by, kinds, multiple } => {
            let how = Pruning { keep, by, kinds, multiple, ..Pruning::default() };
            smaller::prune(&model, &out, how)
        }
        Command::Pack { model, out, budget, beside } => smaller::pack(&model, &out, budget, beside),
        Command::Generate { model, prompt, sampling } => generate(&model, &prompt, &sampling),
        Command::Schemes => say!("{}", schemes()),
        Command::Train(flags) => train(&flags),
        Command::Ablate { config, out, runs, threads: count } => {
            threads(count)?;
            let ablation: Ablation = lowbit::settings::read(&config)?;
            let root = runs.unwrap_or_else(runs_folder);
            let run = Run::resume_free_or_create(root, &ablation.name, &ablation)?;
            run.write_config(&ablation)?;
            ablation
                .record(&run, &out)
                .map_err(|error| goes_on(error, || "the same command goes on from there".to_string()))?;
            tell(&run)
        }
        Command::Tokenizer { corpus, split, pieces, out } => tokenizer(&corpus, split, pieces, &out),
        Command::Plots { run } => plots(&run),
        Command::Compare { runs, baseline } => {
            say!("{}", comparison(&Frame::load_all(&runs)?, baseline.as_deref())?)
        }
        Command::Report { what, out } => report(&what, out.as_deref()),
        Command::Info { model, linears } => info(&model, linears),
        Command::Convert { model, out, training_length } => {
            let mut model = load_for(&model, Some(&out))?;
            model.training_length = training_length.or(model.training_length);
            model.save(&out)?;
            say!("wrote {}", out.display())
        }
    }
}

fn settings<T: Default + DeserializeOwned>(path: Option<&Path>) -> Result<T> {
    path.map_or_else(|| Ok(T::default()), lowbit::settings::read)
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
    let tokenizer = source.tokenizer.as_deref().map(parse_tokenizer).transpose()?;
    let device = Some(parse_device(&source.device)?);
    let how = Loading { dtype, device, revision: source.revision.clone(), tokenizer };
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
    let backend = if source.simulate { Backend::Fake } else { Backend::Packed };
    Quantizing { calibration, backend, rows: source.row_gradients.clone() }
}

fn generate(source: &Source, prompt: &str, how: &Sampling) -> Result<()> {
    how.check()?;
    let prompt = match prompt {
        "-" => {
            std::io::read_to_string(std::io::stdin()).map_err(|error| Error::io("standard input", &error))?
        }
        prompt => prompt.to_string(),
    };
    let said = load(source)?.sample_with(&prompt, how, |text| piece(format_args!("{text}")));
    // What was said stands on lines of its own, however it ended.
    say!("")?;
    said.map(drop)
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
struct Resolved<'a> {
    model: &'a str,
    model_hash: &'a str,
    dtype: &'a str,
    scheme: Option<&'a str>,
    quantizing: Option<Quantizing>,
    device: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokenizer: Option<&'a str>,
    measure: Settings<'a>,
}

fn record(asked: Measuring) -> Result<()> {
    let Measuring { source, recording, mut measure, flags } = asked;
    if let Some(config) = &recording.config {
        measure.read(config)?;
    }
    measure.set(&flags)?;
    if let Some(count) = recording.threads {
        measure.threaded(count);
    }
    threads(recording.threads)?;
    let nothing = || "nothing was recorded yet: the same command begins again".to_string();
    let model = load(&source).map_err(|error| goes_on(error, nothing))?;
    measure.applies(&model).map_err(|why| Error::input(why).at(&model.name))?;
    measure.check(&model)?;
    let name = measure.command();
    let config = Resolved {
        model: &source.model,
        model_hash: &model.hash,
        dtype: model.dtype.as_str(),
        scheme: source.scheme.as_deref(),
        quantizing: source.scheme.as_ref().map(|_| quantizing(&source)),
        device: &source.device,
        tokenizer: source.tokenizer.as_deref(),
        measure: Settings(&measure),
    };
    let run = noted(Run::resume_free_or_create(root(&recording), name, &config)?, &recording);
    run.write_config(&config)?;
    let job = measure.job(name, &model);
    job.and_then(|_job| measure.record(&model, &run)).map_err(|error| {
        goes_on(error, || match run.units() {
            0 => nothing(),
            _ => {
                format!("what was recorded is in {}: the same command goes on from there", shown(run.path()))
            }
        })
    })?;
    tell(&run)
}

/// An interruption with what the same command will do when it is given again.
fn goes_on(error: Error, then: impl FnOnce() -> String) -> Error {
    if error.kind() == Kind::Interrupted { error.hint(then()) } else { error }
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
            Some(path) => measure(chosen(lowbit::settings::read(path)?, flags), flags),
            None => parts(&Study::parts(name), flags),
        },
    }
}

/// Measures studies one after the other. Where one of them was interrupted, those before it are not measured again.
fn parts(names: &[&str], flags: &args::Reproduce) -> Result<()> {
    let root = root(&flags.recording);
    let study = |part: &str| Ok(chosen(Study::named_in(part, &root)?, flags));
    let under_way = |part: &&str| {
        let found = study(part).and_then(|study| Run::unfinished(&root, &study.name, &study));
        found.is_ok_and(|run| run.is_some())
    };
    let first = names.iter().rposition(under_way).unwrap_or(0);
    if let [_, _, ..] = names[first..] {
        // What a study will measure may follow from those before it.
        let (known, later): (Vec<&&str>, Vec<&&str>) =
            names[first..].iter().partition(|part| study(part).is_ok());
        let each = known.iter().map(|part| study(part)?.expected());
        let time = lowbit::progress::roughly(each.sum::<Result<Duration>>()?);
        let without = if later.is_empty() { String::new() } else { format!(" without {}", later[0]) };
        let count = names.len() - first;
        lowbit::progress::announce(&format!(
            "{count} studies one after the other, {time}{without} on this machine"
        ));
    }
    for (i, part) in names.iter().enumerate() {
        let study = study(part)?;
        let done = if i < first { study.current_in(&root)? } else { None };
        match done {
            Some(run) => say!("{part} is measured already: {}", linked(&run))?,
            None => measure(study, flags)?,
        }
    }
    Ok(())
}

/// A study with what the flags put in its place.
fn chosen(mut study: Study, flags: &args::Reproduce) -> Study {
    if let Some(model) = &flags.model {
        study.models = vec![model.clone()];
    }
    study.tokenizer = flags.tokenizer.clone().or(study.tokenizer);
    if let Some(schemes) = &flags.schemes {
        study.schemes = schemes.clone();
    }
    if flags.small { study.small() } else { study }
}

fn measure(study: Study, flags: &args::Reproduce) -> Result<()> {
    let root = root(&flags.recording);
    let open = || Ok(noted(study.open(&root)?, &flags.recording));
    let run = study.record_into(open).map_err(|error| {
        goes_on(error, || match Run::unfinished(&root, &study.name, &study) {
            Ok(Some(run)) => {
                format!("what was recorded is in {}: the same command goes on from there", shown(&run))
            }
            _ => format!("nothing of {} was recorded yet", study.name),
        })
    })?;
    tell(&run)
}

/// A recorded run measured again.
fn check(run: &Path) -> Result<()> {
    let check = Study::check_run(run)?;
    say!("{check}")?;
    check.passed()
}

fn train(flags: &args::Train) -> Result<()> {
    threads(flags.threads)?;
    let mut training: Training = settings(flags.config.as_deref())?;
    if let Some(start) = &flags.start {
        (training.model, training.start) = (Model::load(start)?.config, Some(start.clone()));
    }
    training.corpus = flags.corpus.clone().unwrap_or(training.corpus);
    training.steps = flags.steps.unwrap_or(training.steps);
    training.seed = flags.seed.unwrap_or(training.seed);
    let outcome = training.run(&flags.out).map_err(|error| {
        goes_on(error, || match flags.out.join("checkpoint.safetensors").exists() {
            true => "the same command goes on from the last checkpoint".to_string(),
            false => "there was no checkpoint yet: the same command begins again".to_string(),
        })
    })?;
    say!(
        "{} steps, {:.3} bits/byte on held-out text, {:.0} tokens/s; model in {}",
        outcome.steps,
        outcome.valid_bits_per_byte,
        outcome.tokens_per_s,
        outcome.model.display()
    )
}

fn tokenizer(corpus: &Path, split: Option<String>, pieces: usize, out: &Path) -> Result<()> {
    let usual = || (corpus == Path::new("data/corpus")).then(|| "train".to_string());
    let corpus = Corpus::open(corpus, split.or_else(usual).as_deref())?;
    let file = train_tokenizer(corpus.documents.iter().map(|document| &*document.text), pieces)?;
    if let Some(folder) = out.parent() {
        std::fs::create_dir_all(folder).map_err(|error| Error::io(folder, &error))?;
    }
    std::fs::write(out, file).map_err(|error| Error::io(out, &error))?;
    say!("{pieces} tokens of {} in {}", corpus.title(), out.display())
}

fn plots(run: &str) -> Result<()> {
    let log = Path::new(run).join("log.jsonl");
    let (frame, folder) = if log.exists() {
        (Frame::load(&log)?, Path::new(run).join("plots"))
    } else {
        (Frame::load(run)?, Run::open(run)?.plots_dir()?)
    };
    std::fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, &error))?;
    let mut figures = figure::draw_all(&frame, &folder)?;
    figures.drawn.iter().try_for_each(|path| say!("{}", path.display()))?;
    // Only where nothing at all could be drawn the command has failed.
    match (figures.drawn.is_empty(), figures.failed.pop()) {
        (true, Some((name, error))) => Err(error.at(format!("figure {name}"))),
        (true, None) => {
            warn("the records hold nothing that there is a figure of");
            Ok(())
        }
        (false, failed) => {
            figures.failed.extend(failed);
            failures(&figures);
            Ok(())
        }
    }
}

fn report(what: &Path, out: Option<&Path>) -> Result<()> {
    let report = Report::of(what)?;
    report.warnings().iter().for_each(warn);
    if out == Some(Path::new("-")) {
        return say!("{}", report.html().trim_end());
    }
    let out = out.unwrap_or(report.beside());
    report.save(out)?;
    say!("report    {} ({:.1} MB)", linked(out), report.html().len() as f64 / 1e6)
}

fn info(source: &Source, linears: bool) -> Result<()> {
    let model = load(source)?;
    say!("{model}")?;
    if linears {
        for (path, linear) in model.linears() {
            let (out, inner) = linear.weight.shape()?;
            let stored = match &linear.weight {
                Weight::Dense(weight) => weight.dtype().as_str(),
                Weight::Quantized(_) => "quantized",
            };
            say!("  {path:<44} [{out}, {inner}]  {stored}  {} bytes", linear.weight.bytes())?;
        }
    }
    Ok(())
}
