"""Cells that are hard on a kernel: all of the language, floods of output, ends of the process. Run as test_kernel.py is.

After each of them the kernel computes 1 + 1, and variables are there, or said to be gone.
"""
import re
import shutil
import tempfile
import time
import unittest
from pathlib import Path

from test_kernel import OneKernel, of, plain, text


class Hard(OneKernel):
    """What is asked of the kernel again and again."""

    def value(self, code):
        """A cell's value in its plain form."""
        shown = plain(self.good(code))
        self.assertEqual(len(shown), 1, code)
        return shown[0]

    def goes_on(self):
        self.assertEqual(self.value("1 + 1"), "2")

    def ends(self, code, why):
        """Runs a cell that ends the process: one sentence says so, and a new process goes on without the variables."""
        self.good("let kept = 7;")
        reply, messages = self.kernel.run(code)
        self.assertEqual((reply["status"], reply["ename"]), ("error", "SessionEnded"), code)
        self.assertEqual(len(of(messages, "error")), 1, code)
        self.assertEqual(len(reply["evalue"].splitlines()), 1, reply["evalue"])
        self.assertIn("all variables are gone", reply["evalue"])
        self.assertRegex(reply["evalue"], why)
        self.goes_on()
        self.assertIn("`kept`", self.bad("kept")["evalue"])
        return messages

    def folder(self):
        folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.addClassCleanup(folder.cleanup)  # cells of the session are compiled with what lies in it
        return Path(folder.name)


def crate(folder, name, source):
    """Writes a crate; how a cell brings it."""
    (folder / "src").mkdir(parents=True)
    (folder / "Cargo.toml").write_text(f'[package]\nname = "{name}"\nversion = "9.9.9"\nedition = "2024"\n')
    (folder / "src/lib.rs").write_text(source)
    return f':dep {name} = {{ path = "{folder}" }}\n'


class Language(Hard):
    def test_macros(self):
        self.good("macro_rules! twice { ($x:expr) => { $x * 2 } }")
        self.good("macro_rules! four { ($x:expr) => { twice!(twice!($x)) } }")
        self.assertEqual(self.value("four!(3)"), "12")
        self.good("macro_rules! item { ($name:ident, $v:expr) => { fn $name() -> i32 { $v } } }")
        self.assertEqual(self.value("item!(five, 5); five()"), "5")

    def test_generics_traits_and_what_implements_them_across_cells(self):
        self.good("trait Area { fn area(&self) -> f64; fn twice(&self) -> f64 { 2.0 * self.area() } }")
        self.good("#[derive(Debug, Clone, PartialEq, PartialOrd, Default)] struct Square(f64);")
        self.good("impl Area for Square { fn area(&self) -> f64 { self.0 * self.0 } }\n"
                  "impl std::fmt::Display for Square { fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {"
                  ' write!(f, "a square of {}", self.0) } }')
        self.good("fn largest<T: PartialOrd + Clone>(all: &[T]) -> T {"
                  " let mut best = &all[0]; for x in all { if x > best { best = x } } best.clone() }")
        self.good("let shapes: Vec<Box<dyn Area>> = vec![Box::new(Square(2.0))]; let most = largest(&[Square(1.0), Square(3.0)]);")
        self.assertEqual(self.value("shapes.iter().map(|shape| shape.twice()).sum::<f64>()"), "8.0")
        self.assertEqual(text(self.good('println!("{most} {most:?} {:?}", Square::default() == Square(0.0));')),
                         "a square of 3 Square(3.0) true\n")

    def test_modules_enums_and_constants(self):
        self.good("mod outer { pub mod inner { pub fn seven() -> i32 { 7 } } pub struct Point { pub x: i32 } }\n"
                  "#[derive(Debug, Clone, Copy)] enum Kind { Bare, Of(i32), With { x: i32 } }\n"
                  'const TWICE: usize = 2; static WORD: &str = "word";')
        self.good("use outer::inner::seven; use Kind::*;")
        self.good("let kind = With { x: 1 }; let other = Of(2);")
        self.assertEqual(self.value("seven() + match kind { Bare => 0, Of(n) => n, With { x } => x } + outer::Point { x: 1 }.x"), "9")
        self.assertEqual(self.value("(WORD.repeat(TWICE), matches!(other, Of(2)))"), '("wordword", true)')

    def test_lifetimes_recursion_and_functions_in_functions(self):
        self.good("fn longer<'a>(a: &'a str, b: &'a str) -> &'a str { if a.len() > b.len() { a } else { b } }\n"
                  "struct Holder<'a> { text: &'a str } impl<'a> Holder<'a> { fn first(&self) -> &'a str { &self.text[..1] } }\n"
                  "fn fib(n: u64) -> u64 { fn add(a: u64, b: u64) -> u64 { a + b } if n < 2 { n } else { add(fib(n - 1), fib(n - 2)) } }")
        self.good('let holder = Holder { text: "abc" };')
        self.assertEqual(self.value('(holder.first(), longer("a", "bb"), fib(20))'), '("a", "bb", 6765)')

    def test_shadowing_and_patterns(self):
        self.good('let x = 5; let x = x * 2; let x = format!("{x}!");')
        self.good("let x = x.len();")
        self.assertEqual(self.value("x"), "3")
        self.good("struct Pair { l: i32, r: i32 }\n"
                  "let (a, (b, mut c)) = (1, (2.5, vec![1u8])); let [first, .., last] = [1, 2, 3]; let Pair { l, r } = Pair { l: 4, r: 5 };\n"
                  'let Some(opened) = Some(6) else { panic!("none") };')
        self.assertEqual(self.value("c.push(2); (a, b, c.len(), first + last, l + r, opened)"), "(1, 2.5, 2, 4, 9, 6)")
        self.assertEqual(text(self.good('if let Some(n) = Some(3) && n > 2 { println!("{n}"); }')), "3\n")
        self.good("let found = 'outer: loop { for i in 0.. { if i * i > 50 { break 'outer i; } } }; let block = 'b: { if found > 2 { break 'b 1; } 2 };")
        self.assertEqual(self.value("(found, block)"), "(8, 1)")

    def test_owners_pointers_and_objects_are_kept(self):
        self.good("use std::rc::Rc; use std::cell::RefCell;\n"
                  "let shared = Rc::new(RefCell::new(vec![1])); let again = shared.clone();\n"
                  "let boxed = Box::new(5); let raw: *const i32 = &*boxed; let shown: Box<dyn std::fmt::Display> = Box::new(7);\n"
                  "let f: Box<dyn Fn(i32) -> i32> = Box::new(|x| x + 1); let g: fn(i32) -> i32 = |x| x * 2;\n"
                  "let (sender, receiver) = std::sync::mpsc::channel(); sender.send(1)?; let handle = std::thread::spawn(|| 5);")
        self.good("again.borrow_mut().push(2);")
        self.assertEqual(self.value("(shared.borrow().len(), Rc::strong_count(&shared), unsafe { *raw }, shown.to_string(), g(f(1)))"),
                         '(2, 2, 5, "7", 4)')
        self.assertEqual(self.value("receiver.recv()? + handle.join().unwrap()"), "6")

    def test_what_cannot_be_kept_serves_its_cell_and_is_said_where_it_is_asked_for(self):
        self.good('let words = vec![String::from("a"), String::from("bb")]; let cell = std::cell::RefCell::new(3);')
        self.good("fn adder(n: i32) -> impl Fn(i32) -> i32 { move |x| x + n }\nfn evens(n: u32) -> impl Iterator<Item = u32> { (0..n).filter(|x| x % 2 == 0) }")
        for name, code, prints in [
            ("add", "let add = adder(5); println!(\"{}\", add(1));", "6\n"),
            ("some", "let mut some = evens(10); println!(\"{:?}\", some.nth(1));", "Some(2)\n"),
            ("long", "let long = words.iter().max_by_key(|word| word.len()).unwrap(); println!(\"{long}\");", "bb\n"),
            ("lent", "let lent = cell.borrow(); println!(\"{lent}\");", "3\n"),
            ("caught", "let caught = std::panic::catch_unwind(|| { panic!(\"inside\") }); println!(\"{}\", caught.is_err());", "true\n"),
        ]:
            messages = self.good(code)
            self.assertEqual(text(messages), prints)
            self.assertIn("its own cell alone, since it is", "\n".join(self.bad(name)["traceback"]))
        self.assertEqual(self.value("(words.len(), cell.borrow().clone())"), "(2, 3)")

    def test_polars_and_plotters_by_their_own_names(self):
        self.good("use polars::prelude::*;\nuse plotters::prelude::*;")
        self.good('let shown = df!("a" => [1.0, 2.0, 4.0])?; let half = shown.clone().lazy().select([col("a") / lit(2.0)]).collect()?;')
        self.good("fn doubled(e: polars::prelude::Expr) -> Expr { e * lit(2) }")
        messages = self.good("""picture((320, 200), |root| {
            root.fill(&WHITE)?;
            let mut chart = ChartBuilder::on(&root).caption("halves", ("sans-serif", 20)).margin(10).x_label_area_size(20)
                .y_label_area_size(30).build_cartesian_2d(0.0..2.0, 0.0..2.5)?;
            chart.configure_mesh().draw()?;
            let values: Vec<f64> = half.column("a").unwrap().f64().unwrap().into_no_null_iter().collect();
            chart.draw_series(LineSeries::new(values.iter().enumerate().map(|(i, y)| (i as f64, *y)), BLUE.stroke_width(2)))?;
            Ok(())
        })""")
        data = [message["content"]["data"] for message in messages if "data" in message["content"]][-1]
        self.assertIn("halves", data["image/svg+xml"])
        self.assertTrue(data["image/png"].startswith("iVBOR"))
        self.assertIn("no line", self.bad('picture((32, 20), |root| { root.fill(&WHITE)?; Err("no line".into()) })?')["evalue"])

    def test_async(self):
        self.good("async fn slow() -> i32 { 3 }")
        self.good("let got = slow().await + 1;")
        self.assertEqual(self.value("got + async { 1 }.await"), "5")

    def test_names_and_line_ends_of_any_kind(self):
        self.good("let π = 3.0; let größe = 2.0; let 数 = π * größe;")
        self.assertEqual(self.value("数"), "6.0")
        self.assertEqual(text(self.good('let a = 1;\r\nlet b = 2;\r\nprintln!("{}", a + b);\r\n')), "3\n")
        self.assertEqual(self.value("\ufefflet marked = 1; marked"), "1")  # as an editor that marks its files pastes it

    def test_long_cells(self):
        self.good("\n".join(f"let v{i} = {i} * 2;" for i in range(50)))
        self.assertEqual(self.value("v49 + v0"), "98")
        self.assertEqual(self.value("\n".join(f"fn g{i}() -> usize {{ {i} }}" for i in range(2000)) + "\ng1999()"), "1999")
        self.assertEqual(self.value("g7()"), "7")

    def test_cells_without_code_take_no_time(self):
        for code in ["", "  \n\n", "// words", "/* words */", ";", "#![allow(unused)]"]:
            began = time.monotonic()
            self.assertEqual(plain(self.good(code)), [], code)
            self.assertLess(time.monotonic() - began, 1.9, code)

    def test_attributes_of_a_crate_are_refused_in_words(self):
        self.assertIn("`#![feature]` may not be used", self.bad("#![feature(test)]\nlet y = 1;")["evalue"])
        self.assertEqual(self.value("#![allow(unused)]\nlet z = 1; z"), "1")

    def test_a_cell_ends_early_as_it_is_told(self):
        self.assertIn("return Ok(())", "\n".join(self.bad("if true { return; }")["traceback"]))
        self.assertEqual(plain(self.good("if true { return Ok(()); } 5")), [])

    def test_brackets_that_do_not_close_are_told_as_such(self):
        for code, says in [("for i in 0..3 {", "not closed"), ("let x = (1 + 2];", "not opened"), ("println!(\"{}\", 1", "not closed")]:
            self.assertIn(says, self.bad(code)["evalue"])

    def test_a_static_is_said_to_begin_anew(self):
        said = text(self.good("static mut COUNT: i32 = 0; static NAME: &str = \"n\";"), "stderr")
        self.assertIn("COUNT", said)
        self.assertNotIn("NAME", said)
        self.assertEqual(self.value("unsafe { COUNT += 1; COUNT }"), "1")


class Output(Hard):
    def test_threads_write_whole_lines(self):
        flood = "std::thread::scope(|s| { for t in 0..4 { s.spawn(move || for i in 0..5000 { println!(\"{t} {i}\"); eprintln!(\"e{t} {i}\"); }); } });"
        messages = self.good(flood)
        for name, begin in [("stdout", ""), ("stderr", "e")]:
            lines = text(messages, name).splitlines()
            self.assertEqual(sorted(lines), sorted(f"{begin}{t} {i}" for t in range(4) for i in range(5000)))

    def test_the_threads_of_polars_print(self):
        self.good('let many = df!("g" => (0..200).collect::<Vec<i32>>())?;')
        code = ('use lowbit::polars::prelude::*; let shown = many.clone().lazy().with_columns([col("g").map(|c| { println!("of a frame"); Ok(c) },'
                " |_, f| Ok(f.clone()))]).collect()?;")
        reply, messages = self.kernel.run(code)
        self.assertEqual(reply["status"], "ok", reply.get("traceback"))
        self.assertIn("of a frame\n", text(messages))

    def test_a_flood_of_errors_is_whole(self):
        self.assertEqual(len(text(self.good('for i in 0..100000 { eprintln!("{i}"); }'), "stderr").splitlines()), 100000)
        self.goes_on()

    def test_a_line_of_three_megabytes(self):
        messages = self.good('println!("{}", "x".repeat(3_000_000));')
        self.assertEqual(text(messages), "x" * (1 << 20))
        path = re.search(r"all of it is in (\S+)", text(messages, "stderr")).group(1)
        self.assertEqual(Path(path).read_text(), "x" * 3_000_000 + "\n")
        self.assertEqual(text(self.good('print!("no end of line")')), "no end of line")

    def test_bytes_that_are_no_text(self):
        for stream, name in [("stdout", "stdout"), ("stderr", "stderr")]:
            code = f'use std::io::Write; std::io::{stream}().write_all(b"a\\xff\\xfeb\\n").unwrap();'
            self.assertEqual(text(self.good(code), name), "a\ufffd\ufffdb\n")

    def test_words_of_the_kernel_in_what_is_printed_do_no_harm(self):
        self.good("let kept = 7;")
        for word in ["EVCXR_BEGIN_CONTENT text/plain", "EVCXR_END_CONTENT", "EVCXR_", "\\u{1}lowbit {{}}"]:
            self.assertIn("after", text(self.good(f'println!("{word}"); println!("after");')), word)
            self.assertEqual(self.value("kept"), "7")

    def test_other_programs_print_too(self):
        code = 'std::process::Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]).status()?.code()'
        messages = self.good(code)
        self.assertEqual((text(messages), text(messages, "stderr"), plain(messages)), ("out\n", "err\n", ["Some(3)"]))

    def test_reading_where_nobody_types(self):
        reply, _ = self.kernel.run("std::io::read_to_string(std::io::stdin())?", allow_stdin=False)
        self.assertEqual(reply["ename"], "Input")
        self.goes_on()

    def test_a_panic_of_a_thread_is_told_and_the_cell_goes_on(self):
        messages = self.good('println!("{}", std::thread::spawn(|| { if true { panic!("in a thread") } }).join().is_err());')
        self.assertEqual(text(messages), "true\n")
        self.assertIn("in a thread", text(messages, "stderr"))
        self.assertEqual(self.bad("std::thread::spawn(|| { if true { panic!(\"inside\") } }).join().unwrap();")["ename"], "Panic")

    def test_a_panic_that_was_caught_is_no_failure(self):
        messages = self.good('let failed = std::panic::catch_unwind(|| { if true { panic!("caught") } }).is_err();')
        self.assertIn("caught", text(messages, "stderr"))
        self.assertEqual(self.value("failed"), "true")

    def test_a_panic_while_a_value_goes(self):
        self.good("struct Bomb; impl Drop for Bomb { fn drop(&mut self) { if !std::thread::panicking() { panic!(\"in drop\"); } } }\nlet kept = 7;")
        self.assertEqual(self.bad("{ let _bomb = Bomb; }")["evalue"], "in drop")
        self.assertEqual(self.bad("{ let _bomb = Bomb; panic!(\"first\"); }")["evalue"], "first")
        self.assertEqual(self.value("kept"), "7")


class Ends(Hard):
    def test_it_is_ended(self):
        messages = self.ends('println!("before"); eprintln!("also"); std::process::exit(3)', "exit status: 3")
        self.assertEqual((text(messages), text(messages, "stderr")), ("before\n", "also\n"))
        self.ends("std::process::exit(0)", "exit status: 0")

    def test_it_aborts(self):
        self.assertEqual(text(self.ends('print!("before "); println!("it"); std::process::abort()', "SIGABRT")), "before it\n")
        self.ends("struct Bomb; impl Drop for Bomb { fn drop(&mut self) { panic!(\"in drop\"); } }\n{ let _bomb = Bomb; panic!(\"first\"); }", "SIGABRT")

    def test_its_stack_overflows(self):
        code = "fn deep(n: u64) -> u64 { if n == 0 { 0 } else { 1 + deep(std::hint::black_box(n + 1)) } }\ndeep(1)"
        self.assertIn("overflow", text(self.ends(code, "stack"), "stderr"))

    def test_it_reads_where_nothing_is(self):
        self.ends("let nowhere = std::hint::black_box(std::ptr::null_mut::<i32>()); unsafe { *nowhere = 1; }", "memory|SIGSEGV")

    def test_memory_runs_out_under_a_limit(self):
        self.good("#[repr(C)] struct Limit { soft: u64, hard: u64 }\nunsafe extern \"C\" { fn setrlimit(what: i32, limit: *const Limit) -> i32; }\n"
                  "unsafe { setrlimit(9, &Limit { soft: 3 << 30, hard: 3 << 30 }) };")  # 9: the address space
        code = 'let mut all: Vec<Vec<u8>> = vec![]; loop { all.push(vec![0; 256 << 20]); println!("{}", all.len()); }'
        self.assertIn("1\n2\n", text(self.ends(code, "memory")))
        self.assertEqual(self.value("vec![0u8; 4 << 30].len()"), str(4 << 30))  # the new process has no limit

    def test_a_deadlock_is_stopped_twice(self):
        self.good("let kept = 7;")
        request = self.kernel.send('println!("begun"); let lock = std::sync::Mutex::new(1); { let _held = lock.lock().unwrap(); let _again = lock.lock().unwrap(); }')
        for message in self.kernel.published(request, until_idle=False):
            if message["msg_type"] == "stream":
                break
        self.kernel.manager.interrupt_kernel()
        for message in self.kernel.published(request, until_idle=False, timeout=5):
            if "does not stop" in message["content"].get("text", ""):
                break
        self.kernel.manager.interrupt_kernel()
        list(self.kernel.published(request))
        self.assertEqual(self.kernel.reply(request)["ename"], "SessionEnded")
        self.goes_on()

    def test_threads_that_print_are_stopped(self):
        self.good("let kept = 7;")
        for threads in [1, 2, 4]:
            request = self.kernel.send(f'std::thread::scope(|s| {{ for t in 0..{threads} {{ s.spawn(move || loop {{ println!("{{t}}"); }}); }} }});')
            time.sleep(2)
            self.kernel.manager.interrupt_kernel()
            list(self.kernel.published(request, timeout=10))
            self.assertEqual(self.kernel.reply(request)["evalue"], "interrupted")
            self.assertEqual(self.value("kept"), "7")

    def test_a_loop_that_allocates_and_prints_is_stopped(self):
        self.good("let kept = 7;")
        request = self.kernel.send('let mut all = vec![]; for i in 0.. { all.push(vec![0u8; 1 << 12]); println!("{i} {}", all.len()); }')
        time.sleep(2)
        self.kernel.manager.interrupt_kernel()
        list(self.kernel.published(request))
        self.assertEqual(self.kernel.reply(request)["evalue"], "interrupted")
        self.assertEqual(self.value("kept"), "7")


class Crates(Hard):
    def test_a_crate_that_calls_itself_polars(self):
        dependency = crate(self.folder() / "polars", "polars", "#[derive(Debug)] pub struct DataFrame(pub i32);")
        messages = self.good(dependency + "let own = polars::DataFrame(3);")
        self.assertIn("lowbit brings polars", text(messages, "stderr"))
        self.good('let frame = df!("a" => [1, 2, 3])?;')
        self.assertEqual(self.value("(own, frame.height(), DataFrame::empty().height())"), "(DataFrame(3), 3, 0)")

    def test_a_crate_that_does_not_compile_leaves_the_session_as_it_was(self):
        self.good("let kept = 7;")
        self.bad(crate(self.folder() / "wrong", "wrong", "pub fn f() -> i32 { \"text\" }") + "wrong::f()")
        self.bad(':dep nowhere = { path = "/no/such/folder" }\n1')
        self.assertEqual(self.value("kept"), "7")

    def test_a_crate_whose_folder_goes_away(self):  # the last: nothing of the session is left then
        folder = self.folder() / "gone"
        self.good(crate(folder, "gone", "pub fn one() -> i32 { 1 }") + "let kept = gone::one();")
        shutil.rmtree(folder)
        said, values = [], []
        for _ in range(3):  # a session that is lost is said once, and a new one begins
            reply, messages = self.kernel.run("1 + 1")
            said += [reply["evalue"]] if reply["status"] == "error" else []
            values += plain(messages)
        self.assertLessEqual(len(said), 1, said)
        self.assertEqual(values[-1:], ["2"], said)


if __name__ == "__main__":
    unittest.main()
