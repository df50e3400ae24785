use super::*;

#[test]
fn what_a_cell_ends_in_is_shown_by_a_statement() {
    let shown = |code: &str| showing(code);
    assert_eq!(shown("let d = 1;\nd + 1").as_deref(), Some("let d = 1;\n(d + 1).evcxr_display();"));
    assert_eq!(shown("d + 1"), None, "nothing of this cell can be used up");
    assert_eq!(shown("let d = 1;"), None);
    assert_eq!(shown("let d = 1;\nif d > 0 { d } else { 0 }"), None);
    assert_eq!(uses("let f = 1; format!(\"{f} {ff}\")", "f"), 2);
}

fn types(found: &[(&str, &str)]) -> BTreeMap<String, Type> {
    let of = |text: &str| match text.strip_prefix('!') {
        Some(what) => Type::Nameless(what.into()),
        None => Type::Named(text.into()),
    };
    found.iter().map(|(question, text)| ((*question).to_string(), of(text))).collect()
}

#[test]
fn paths_begin_with_lowbit() {
    let own = |code: &str| through_lowbit(code, &["polars", "plotters"]);
    assert_eq!(
        own("use polars::prelude::*;\nuse {plotters::style, std::fs};\nuse polars;"),
        "use lowbit::polars::prelude::*;\nuse {lowbit::plotters::style, std::fs};\nuse lowbit::polars;"
    );
    assert_eq!(
        own("let e: polars::prelude::Expr = f(polars::prelude::col(\"a\"));").matches("lowbit::").count(),
        2
    );
    for other in [
        "use lowbit::{polars, plotters};",
        "use ::polars::x;",
        "let polars = 1; polars + 1",
        "a::polars::b()",
    ] {
        assert_eq!(own(other), other);
    }
    assert_eq!(through_lowbit("use polars::prelude::*;", &[]), "use polars::prelude::*;");
}

#[test]
fn commands_stand_before_the_code() {
    assert_eq!(code_begins(":dep rand = \"0.9\"\n\nlet x = 1;"), 19);
    assert_eq!(code_begins("let x = 1;\n:dep y"), 0);
    assert_eq!(code_begins("!ls\n// words\n"), 13);
}

#[test]
fn private_methods_are_left_out() {
    let source = "impl A { pub fn a() {} fn b(&self) {} pub(crate) fn c() {} }\nimpl T for A { fn d() {} }";
    assert_eq!(public(source), "impl A { pub fn a() {}   }\nimpl T for A { fn d() {} }");
}

#[test]
fn brackets_are_counted_outside_of_texts() {
    assert_eq!(
        ["f(", "fn f() { [", "\"(\"; // {", "1 + 1", "let x = \"abc"].map(brackets),
        [Ok(1), Ok(2), Ok(0), Ok(0), Ok(1)]
    );
    assert_eq!(["fn )", "(]"].map(brackets), [Err(()), Err(())]);
}

#[test]
fn statements_that_leave_a_type_to_be_found() {
    let code = "let a = f();\nlet b: i32 = 1;\nlet c: Vec<_> = g();\nlet d = 5;\n{ let e = f(); }\nlet Some(x) = h() else { return };";
    let found = lets(code);
    let names: Vec<&str> =
        found.iter().flat_map(|one| &one.variables).map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["a", "c", "x"]);
    assert!(
        asking("let a = f();", &lets("let a = f();"))
            .ends_with("let lowbit_asks_0_a = ::std::hint::black_box(&a);")
    );
    assert!(lets("let y;").is_empty() && lets("let = ;").is_empty());
}

#[test]
fn what_does_not_run_and_what_does_not_last() {
    let without = ["", ":vars\n", "// words", "/* words */", ";", "#![allow(unused)]"];
    assert_eq!(without.map(runs), [false; 6]);
    assert_eq!(["fn f() {}", "1", "let x = 1;", ":dep a\nb"].map(runs), [true; 4]);
    let code =
        "static A: &str = \"\"; static mut B: i32 = 0; fn f() { static C: AtomicI32 = AtomicI32::new(0); }";
    assert_eq!(statics(code), ["B", "C"]);
}

#[test]
fn types_are_written_where_they_belong() {
    let of = |code: &str, found: &[(&str, &str)]| typed(code, &lets(code), &types(found));
    assert_eq!(of("let mut a = f();", &[("lowbit_asks_0_a", "A")]), "let mut a: A = f();");
    assert_eq!(of("let a: Vec<_> = f();\n1", &[("lowbit_asks_0_a", "Vec<u8>")]), "let a: Vec<u8> = f();\n1");
    let pair = [("lowbit_asks_0_a", "A"), ("lowbit_asks_0_b", "B")];
    assert_eq!(of("let (a, mut b) = f();", &pair), "let (a, mut b) = f(); let a: A = a; let mut b: B = b;");
    let code = "let g = |x: i32| x + 1;";
    assert_eq!(of(code, &[("lowbit_asks_0_g", "!a closure")]), format!("lowbit::unkept!({code});"));
    let half = [("lowbit_asks_0_a", "A"), ("lowbit_asks_0_g", "!a closure")];
    assert_eq!(of("let (a, g) = f();", &half), "lowbit::unkept!(let (a, g) = f();); let a: A = a;");
    // What is not known stays as it is.
    assert_eq!(of("let a = f();", &[]), "let a = f();");
}
