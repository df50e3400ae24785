use super::page::{Page, table};
use super::*;
use crate::record::{Conditions, Reading, Subject};
use serde_json::json;

#[test]
fn a_run_that_is_not_finished_or_not_clean_says_so() {
    let root = tempfile::tempdir().unwrap();
    let run = Run::create_in(root.path(), "glance").unwrap();
    let subject = Subject { model: "m".into(), scheme: "f32".into(), ..Subject::default() };
    let mut reading = Reading::new("perplexity", 1, &subject, &Conditions::default()).value("ppl", 4.5);
    reading.warn("odd <numbers>");
    run.record(&[reading]).unwrap();
    let report = Report::of(run.path()).unwrap();
    assert_eq!(report.warnings().len(), 2, "{:?}", report.warnings());
    let html = report.html();
    for part in [
        "<h1>glance</h1>",
        "Does the model still predict",
        "<li>odd &lt;numbers&gt;</li>",
        "<li>this run is not finished",
        "it was made by hand",
        "<td class=\"n\">4.500</td>",
    ] {
        assert!(html.contains(part), "{part}");
    }
    run.finish().unwrap();
    assert_eq!(Report::of(run.path()).unwrap().warnings(), ["odd <numbers>"]);
}

#[test]
fn every_study_has_a_question() {
    use crate::study::Study;
    assert!(Study::NAMES.iter().all(|name| Study::question(name).is_some_and(|asked| asked.ends_with('?'))));
}

#[test]
fn data_cannot_end_its_element() {
    let mut page = Page::default();
    let figure = page.figure("<svg/>", "a figure", Some(&json!({"title": "</script><!--<script>"})));
    assert_eq!(figure.matches("</script>").count(), 1);
    assert!(figure.contains("\\u003c/script>\\u003c!--"), "{figure}");
    assert!(page.interactive && page.html().contains("vegaEmbed"));
    let html = page.html();
    assert!(html.contains("University of Washington Interactive Data Lab"));
    // Each program ends with the only end that there is.
    assert_eq!(html.matches("<script>").count(), html.matches("</script>").count());
}

#[test]
fn tables_are_escaped_and_say_what_is_left_out() {
    let columns = [("a<b".to_string(), "MB".to_string(), true), ("c".to_string(), String::new(), false)];
    let html = table(&columns, &[vec!["1".into(), "x & y".into()]], &["a note".into()]);
    assert!(html.contains("<th scope=\"col\" class=\"n\">a&lt;b<small>MB</small></th>"), "{html}");
    assert!(html.contains("<td class=\"n\">1</td><td>x &amp; y</td>") && html.contains("a note"), "{html}");
    assert!(!table(&columns, &[], &["no rows".into()]).contains("<table"));
}
