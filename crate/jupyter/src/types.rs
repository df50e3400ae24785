//! The types of a cell's variables, asked of the compiler.
//!
//! rustc prints the types of a function's variables in its MIR, with whole paths that can be written where the function
//! stands. A probe of the cell is compiled so far and no further: nothing is generated, linked or run. How rustc is called
//! for cells is noted by the wrapper that cargo calls it through ([`wrap`]).

use crate::cell::Type;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Names the folder of the session for the compiler's wrapper.
pub const SESSION: &str = "LOWBIT_SESSION";
/// The crate of cells, as evcxr calls it.
const CRATE: &str = "ctx";
/// The function around a cell that is analysed, as evcxr calls it; it is asynchronous, so its body is a closure.
const BODY: &str = "fn evcxr_analysis_wrapper::{closure#0}(";
/// Lines of evcxr's that use every variable once more, which a variable that was moved does not stand.
const USE: &str = "evcxr_variable_store(";
/// The file in the session's folder that says how rustc is called.
const CALL: &str = "rustc-call";

/// Becomes rustc, if this process was started in its place.
///
/// The crate of cells is always compiled as the same crate: else a new dependency would make other types of those that
/// earlier cells have defined, and their variables would be lost.
pub fn wrap() {
    let Some(folder) = std::env::var_os(SESSION) else { return };
    let mut arguments = std::env::args_os().skip(1);
    let Some(rustc) = arguments.next() else { return };
    if Path::new(&rustc).file_stem().is_none_or(|name| name != "rustc") {
        return;
    }
    let mut arguments: Vec<OsString> = arguments.collect();
    let cells = arguments.windows(2).any(|pair| pair[0] == "--crate-name" && pair[1] == CRATE);
    if cells {
        for argument in &mut arguments {
            if argument.to_str().is_some_and(|text| text.starts_with("metadata=")) {
                *argument = "metadata=cells".into();
            }
        }
        let all = std::iter::once(&rustc).chain(&arguments).map(|text| text.to_string_lossy());
        let call: Vec<_> = all.collect();
        let _ = std::fs::write(Path::new(&folder).join(CALL), call.join("\n")); // types are then found by evcxr, or not
    }
    let error = Command::new(rustc).args(arguments).exec();
    eprintln!("rustc cannot be started: {error}");
    std::process::exit(1);
}

/// The types of the variables of the cell that evcxr has written out for analysis in the session's `folder`; None if it
/// does not compile. Keys are the variables' names; only those that begin with `prefix`, of references, are asked for.
pub fn ask(folder: &Path, prefix: &str) -> Option<BTreeMap<String, Type>> {
    let call = std::fs::read_to_string(folder.join(CALL)).ok()?;
    let source = std::fs::read_to_string(folder.join("src/lib.rs")).ok()?;
    let used = |line: &&str| !(line.starts_with(USE) && line.ends_with(");"));
    let probe: String = source.lines().filter(used).flat_map(|line| [line, "\n"]).collect();
    let (path, mir) = (folder.join("probe.rs"), folder.join("probe.mir"));
    std::fs::write(&path, probe).ok()?;
    let mut renamed = vec![];
    let mut lines = call.lines();
    let mut rustc = Command::new(lines.next()?);
    rustc.current_dir(folder);
    while let Some(argument) = lines.next() {
        match argument {
            "--extern" => {
                let option = lines.next().unwrap_or_default();
                renamed.extend(alias(option));
                rustc.args([argument, option]);
            }
            "--emit" | "--crate-type" | "--out-dir" => drop(lines.next()),
            "-C" => match lines.next() {
                Some(option) if option.starts_with("incremental=") => {}
                option => drop(rustc.arg(argument).args(option)),
            },
            _ if ["--emit=", "--json=", "--error-format=", "-Cincremental="]
                .iter()
                .any(|start| argument.starts_with(start)) => {}
            _ if argument.ends_with("src/lib.rs") => {}
            _ => drop(rustc.arg(argument)),
        }
    }
    rustc.arg(&path).args(["--crate-type", "lib", "-Awarnings"]).arg(format!("--emit=mir={}", mir.display()));
    let compiled = rustc.output().ok()?;
    if !compiled.status.success() {
        return None;
    }
    let mut mir = std::fs::read_to_string(mir).ok()?;
    for (own, here) in renamed {
        mir = mir.replace(&format!("{own}::"), &format!("{here}::"));
    }
    Some(read(&mir, prefix))
}

/// The name of a crate and the other that it has here, of an option such as `lowbit=/…/liblowbit_face-0123.rlib`.
fn alias(option: &str) -> Option<(String, String)> {
    let (here, path) = option.split_once('=')?;
    let stem = Path::new(path).file_stem()?.to_str()?;
    let own = stem.strip_prefix("lib")?.split('-').next()?;
    (own != here).then(|| (own.to_string(), here.to_string()))
}

/// The types in rustc's MIR of the references whose names begin with `prefix`.
fn read(mir: &str, prefix: &str) -> BTreeMap<String, Type> {
    let body = mir.lines().skip_while(|line| !line.starts_with(BODY)).take_while(|line| *line != "}");
    let (mut locals, mut names) = (BTreeMap::new(), vec![]);
    for line in body {
        let line = line.trim();
        if let Some((name, place)) = line.strip_prefix("debug ").and_then(|rest| rest.split_once(" => ")) {
            if name.starts_with(prefix) {
                names.push((name, place.trim_end_matches(';')));
            }
        } else if let Some((place, ty)) = line
            .strip_prefix("let ")
            .map(|rest| rest.strip_prefix("mut ").unwrap_or(rest))
            .and_then(|rest| rest.split_once(": "))
        {
            locals.insert(place, ty.trim_end_matches(';'));
        }
    }
    let signatures = signatures(mir);
    let types = names.into_iter().filter_map(|(name, place)| {
        let ty = locals.get(place)?.strip_prefix('&')?;
        let what = match (ty.contains("{closure@"), ty.starts_with("{closure@")) {
            (_, true) => match signatures.get(ty) {
                Some(boxed) => format!("a closure; to keep it, write `let …: {boxed} = Box::new(…);`"),
                None => "a closure".to_string(),
            },
            (true, _) => "made of a closure; to keep what it yields, collect it".to_string(),
            _ if ty.contains('{') => "of a type without a name".to_string(),
            _ if ty.starts_with("impl ") || ty.contains("<impl ") => format!("some type that is `{ty}`"),
            // Only as the result of a function can `!` be written.
            _ if ty.replace("-> !", "").contains('!') => {
                format!("of a type that cannot be written yet (`{ty}`); to keep it, write `()` there for `!`")
            }
            _ => return Some((name.to_string(), Type::Named(ty.to_string()))),
        };
        Some((name.to_string(), Type::Nameless(what)))
    });
    types.collect()
}

/// The closures of a module, and the boxes that can hold them.
fn signatures(mir: &str) -> BTreeMap<&str, String> {
    let heads = mir
        .lines()
        .filter_map(|line| line.strip_prefix("fn ")?.split_once("{closure#")?.1.split_once("(_1: "));
    let each = heads.filter_map(|(_, head)| {
        let head = head.strip_suffix(" {")?;
        let (own, kind) = match head.strip_prefix('&') {
            None => (head, "FnOnce"),
            Some(rest) => rest.strip_prefix("mut ").map_or((rest, "Fn"), |rest| (rest, "FnMut")),
        };
        let end = own.strip_prefix("{closure@")?.find('}')? + "{closure@".len() + 1;
        let (closure, rest) = own.split_at(end);
        let (arguments, result) = rest.rsplit_once(") -> ")?;
        let arguments = arguments.split(", _").filter_map(|argument| argument.split_once(": "));
        let arguments: Vec<&str> = arguments.map(|(_, ty)| ty).collect();
        Some((closure, format!("Box<dyn {kind}({}) -> {result}>", arguments.join(", "))))
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIR: &str = "\
fn evcxr_analysis_wrapper::{closure#0}(_1: Pin<&mut {async fn body}>) -> Poll<()> {
    debug old => ((*_105).0: std::vec::Vec<i32>);
    let mut _3: std::vec::Vec<i32>;
    let _4: lowbit::polars::prelude::DataFrame;
    let _5: &lowbit::polars::prelude::DataFrame;
    scope 1 {
        debug df => _4;
        debug ask_df => _5;
        let _6: &{closure@src/lib.rs:1:9: 1:12};
        scope 2 {
            debug ask_g => _6;
            let _7: &std::iter::Map<std::array::IntoIter<i32, 2>, {closure@src/lib.rs:2:9: 2:12}>;
            debug ask_it => _7;
            let _8: &&str;
            debug ask_s => _8;
            let _9: &std::result::Result<!, fn() -> !>;
            debug ask_never => _9;
            let _10: &fn() -> !;
            debug ask_exit => _10;
        }
    }
}
fn evcxr_analysis_wrapper::{closure#0}::{closure#0}(_1: &mut {closure@src/lib.rs:1:9: 1:12}, _2: i32, _3: (u8, f32)) -> std::string::String {
    let _9: &i32;
}
";

    #[test]
    fn crates_have_the_names_that_cells_know() {
        let renamed = Some(("lowbit_face".to_string(), "lowbit".to_string()));
        assert_eq!(alias("lowbit=/a/liblowbit_face-148705.rlib"), renamed);
        assert_eq!(alias("rand=/a/librand-12.rmeta"), None);
    }

    #[test]
    fn types_are_read_with_their_paths() {
        let found = read(MIR, "ask_");
        assert_eq!(found["ask_df"], Type::Named("lowbit::polars::prelude::DataFrame".into()));
        assert_eq!(found["ask_s"], Type::Named("&str".into()));
        let Type::Nameless(closure) = &found["ask_g"] else { panic!("{found:?}") };
        assert!(closure.contains("Box<dyn FnMut(i32, (u8, f32)) -> std::string::String>"), "{closure}");
        assert!(matches!(&found["ask_it"], Type::Nameless(what) if what.contains("collect")));
        assert!(matches!(&found["ask_never"], Type::Nameless(what) if what.contains("Result<!")));
        assert_eq!(found["ask_exit"], Type::Named("fn() -> !".into()));
        assert_eq!(found.len(), 6);
    }
}
