//! A study from its settings to the records of its run.

use lowbit::prelude::*;

#[test]
fn every_model_is_measured_in_every_scheme_once() {
    let root = tempfile::tempdir().unwrap();
    let study = Study::new("grid")
        .models(["random:mamba2-tiny"])
        .schemes(["f32", "w4a8-g64"])
        .measure(Passkey { lengths: vec![260], trials: 2, ..Passkey::default() })
        .measure(Cost { lengths: vec![16], gen_len: 2, repetitions: 1, ..Cost::default() });
    let half = Study { schemes: vec!["w4a8-g64".into()], ..study.clone() };
    let half = half.run_into(|| study.open(root.path())).unwrap();
    // As if it had been cut short: the same run goes on and measures only what it lacks.
    std::fs::remove_file(half.path().join("finished")).unwrap();
    let (id, before) = (half.id().to_string(), Frame::load(half.path()).unwrap().height());
    drop(half);
    let run = study.run_into(|| study.open(root.path()).map(|run| run.notes("second try"))).unwrap();
    assert_eq!(run.id(), id);
    let rows = Frame::load(run.path()).unwrap();
    assert_eq!(rows.height(), 2 * before);
    for scheme in ["f32", "w4a8-g64"] {
        let summaries = rows.filter("scheme", scheme).unwrap().filter("row", "summary").unwrap();
        assert_eq!(summaries.texts("measure").unwrap().len(), 3); // passkey, prefill, decode
    }
    let noted = rows.filter("notes", "second try").unwrap();
    assert_eq!((noted.height(), noted.texts("scheme").unwrap()[0].as_deref()), (before, Some("f32")));
}
