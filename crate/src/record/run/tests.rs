use super::*;
use crate::record::{Conditions, Row, SUMMARY, Subject, without_timing};
use serde_json::json;

fn unit(fingerprint: &str) -> Vec<Reading> {
    let reading = |row: &str| {
        Reading::new("passkey", 1, &Subject::default(), &Conditions::default())
            .row(row)
            .fingerprint(fingerprint)
    };
    vec![
        reading(SUMMARY).value("accuracy", 0.5).value("runtime_s", 2.0),
        reading("trial").value("correct", 1),
    ]
}

fn rows(run: &Path) -> Vec<Row> {
    read_lines(run.join("metrics.jsonl")).unwrap().rows
}

#[test]
fn a_rerun_continues_by_fingerprint() {
    let root = tempfile::tempdir().unwrap();
    let config = json!({"lengths": [256, 512]});
    let run = Run::resume_or_create(root.path(), "pass-key", &config).unwrap();
    assert!(run.id().contains("-pass-key-") && run.id().len() == 15 + 10 + 6, "{}", run.id());
    run.write_config(&config).unwrap();
    run.record(&unit("a")).unwrap();
    assert!(run.has("a") && !run.has("b"));
    let id = run.id().to_string();
    drop(run);

    let run = Run::resume_or_create(root.path(), "pass-key", &config).unwrap();
    assert!(run.id() == id && run.has("a") && run.warnings().is_empty());
    run.record(&unit("b")).unwrap();
    run.finish().unwrap();
    assert!(run.is_finished());
    let path = run.path().to_path_buf();
    let finished = |config: &serde_json::Value| Run::finished(root.path(), "pass-key", config).unwrap();
    assert_eq!(finished(&config).map(|path| fs::canonicalize(path).unwrap()), Some(path.clone()));
    assert_eq!(finished(&json!({"lengths": [256]})), None);
    drop(run);
    assert_eq!(rows(&path).len(), 4);
    assert_eq!(rows(&path)[1]["row"], SUMMARY, "the summary closes its unit");
    let yaml = fs::read_to_string(path.join("config_resolved.yaml")).unwrap();
    assert_eq!(serde_saphyr::from_str::<serde_json::Value>(&yaml).unwrap(), config);

    let fresh = Run::resume_or_create(root.path(), "pass-key", &config).unwrap();
    assert_ne!(fresh.id(), id, "a finished run is not continued");
    let other = Run::resume_or_create(root.path(), "pass-key", &json!({"lengths": [256]})).unwrap();
    assert_ne!(other.id()[15..], id[15..], "another configuration is another run");
    assert_eq!(runs_named(root.path(), "pass-key").unwrap().len(), 3);
    assert!(runs_named(root.path(), "key").unwrap().is_empty());
}

#[test]
fn a_torn_run_is_mended_and_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let run = Run::create_in(root.path(), "t").unwrap();
    run.record(&unit("a")).unwrap();
    run.record(&unit("b")).unwrap();
    let path = run.path().to_path_buf();
    drop(run);
    let metrics = path.join("metrics.jsonl");
    let whole = fs::read_to_string(&metrics).unwrap();
    fs::write(&metrics, &whole[..whole.len() - 30]).unwrap();

    let run = Run::open(&path).unwrap();
    assert_eq!(run.warnings().len(), 2, "{:?}", run.warnings());
    assert!(run.has("a") && !run.has("b"));
    let kept = fs::read_to_string(path.join("metrics.jsonl.torn")).unwrap();
    assert_eq!(fs::read_to_string(&metrics).unwrap() + &kept, whole[..whole.len() - 30]);
    run.record(&unit("b")).unwrap();
    let twice = without_timing(&rows(&path)[1]);
    assert_eq!(rows(&path).len(), 4);
    assert_eq!(twice["accuracy"], 0.5);
    assert!(!twice.contains_key("runtime_s") && !twice.contains_key("timestamp"));
    drop(run);

    fs::write(&metrics, whole.trim_end()).unwrap();
    let run = Run::open(&path).unwrap();
    run.record(&unit("c")).unwrap();
    assert_eq!(rows(&path).len(), 6, "a lost final newline loses no row");
}

#[test]
fn equal_readings_are_equal_lines_but_for_timings() {
    let root = tempfile::tempdir().unwrap();
    let line = |name: &str| {
        let run = Run::create_in(root.path(), name).unwrap();
        run.record(&unit("a")).unwrap();
        let rows = rows(run.path());
        serde_json::to_string(&rows.iter().map(without_timing).collect::<Vec<_>>()).unwrap()
    };
    assert_eq!(line("one"), line("two"));
}

fn ids(root: &Path, name: &str) -> Vec<String> {
    let runs = runs_named(root, name).unwrap();
    runs.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

#[test]
fn any_number_of_runs_is_made_in_a_second() {
    let root = tempfile::tempdir().unwrap();
    let made: Vec<String> =
        (0..300).map(|_| Run::create_in(root.path(), "a").unwrap().id().to_string()).collect();
    assert_eq!(ids(root.path(), "a"), made, "names sort by age");
    let now = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S%.6f").to_string();
    assert!(made.iter().all(|id| id[..15] <= now[..15]), "none is dated later than it was made");
    // Several at once, of one configuration: none is taken twice, and none refused.
    let many: Vec<String> = std::thread::scope(|scope| {
        let one = || Run::resume_free_or_create(root.path(), "b", &1).map(|run| (run.id().to_string(), run));
        let all: Vec<_> = (0..8).map(|_| scope.spawn(move || one().unwrap())).collect();
        let runs: Vec<_> = all.into_iter().map(|thread| thread.join().unwrap()).collect();
        runs.iter().map(|(id, _)| id.clone()).collect()
    });
    assert_eq!(many.iter().collect::<HashSet<_>>().len(), 8, "{many:?}");
    let free = Run::resume_free_or_create(root.path(), "b", &1).unwrap();
    assert_eq!(Some(free.id()), ids(root.path(), "b").last().map(String::as_str), "the newest goes on");
}

#[test]
fn a_clock_that_was_set_back_refuses_nothing() {
    let root = tempfile::tempdir().unwrap();
    for later in ["20991231-235959-a-abcdef", "20991231-235959.5-a-abcdef"] {
        fs::create_dir(root.path().join(later)).unwrap();
        let [first, second] = [(), ()].map(|()| Run::create_in(root.path(), "a").unwrap().id().to_string());
        assert!(first < second && second[..4] < *"2099", "{first} {second}");
    }
}

#[test]
fn bad_use_is_one_sentence() {
    let root = tempfile::tempdir().unwrap();
    let run = Run::create_in(root.path(), "x").unwrap();
    let taken = unit("a").remove(0).value("seed", 3);
    assert!(
        run.record(&[taken])
            .unwrap_err()
            .to_string()
            .contains("`seed` of `passkey` has the name of a column")
    );
    assert_eq!(rows(run.path()).len(), 0);
    let locked = Run::open(run.path()).unwrap_err().to_string();
    assert!(locked.contains("another process is recording into this run"), "{locked}");
    assert!(Run::create_in(root.path(), "a/b").unwrap_err().to_string().contains("cannot name a run"));
    let missing = Run::open(root.path().join("none")).unwrap_err().to_string();
    assert!(missing.contains("no such run"), "{missing}");
    // A file where the runs folder should be: as unwritable for root as for anybody.
    let file = root.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Run::create_in(&file, "x").unwrap_err();
    assert_eq!(error.kind(), crate::error::Kind::Io);
    assert!(error.to_string().ends_with("choose another folder with --runs or LOWBIT_RUNS"), "{error}");
    assert_eq!(error.to_string().lines().count(), 1);
}
