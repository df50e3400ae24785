"""What people type into cells next: polars, closures, loops that run away, much output. Run as test_kernel.py is."""
import re
import tempfile
import time
import unittest

from pathlib import Path

from test_kernel import Kernel, OneKernel, of, plain, text


class Cells(OneKernel):
    def test_frames_are_kept_in_variables(self):
        self.good('let df = df!("a" => [1, 2, 3], "g" => ["x", "y", "x"])?;')
        self.good('let lazy = df.clone().lazy().with_columns([(col("a") * lit(2)).alias("b")]);')
        self.good('let m = lazy.clone().group_by([col("g")]).agg([col("b").sum()]).sort(["g"], Default::default()).collect()?;')
        self.assertIn("8", plain(self.good("m"))[0])
        self.good('let joined = df.clone().lazy().join(m.clone().lazy(), [col("g")], [col("g")], JoinArgs::new(JoinType::Inner)).collect()?;')
        self.good('let s = joined.column("b")?.as_materialized_series().clone();')
        self.assertEqual(plain(self.good("s.sum::<i32>()?")), ["20"])
        self.good('let fr = Frame::load("phase1")?; let means = fr.data().clone().lazy().group_by([col("scheme")]).agg([col("ppl").mean()]).collect()?;')
        self.assertEqual(plain(self.good("means.height() > 10")), ["true"])

    def test_tensors_and_pairs_are_kept(self):
        self.good("let (t, mut n) = (Tensor::ones((2, 3), DType::F32, &Device::Cpu)?, vec![1u8]);")
        self.good("n.push(2); let total = t.sum_all()?.to_scalar::<f32>()?;")
        self.assertEqual(plain(self.good("(total, n.len())")), ["(6.0, 2)"])
        self.good("let picked: Vec<_> = n.iter().map(|x| x * 2).collect();")
        self.assertEqual(plain(self.good("picked")), ["[2, 4]"])

    def test_a_closure_serves_its_cell_and_says_what_to_write(self):
        messages = self.good("let g = |x: i32| x + 1; println!(\"{}\", g(1));")
        self.assertEqual((text(messages), text(messages, "stderr")), ("2\n", ""))
        reply = self.bad("g(2)")
        self.assertIn("its own cell", "\n".join(reply["traceback"]))
        self.assertIn("Box<dyn Fn(i32) -> i32>", "\n".join(reply["traceback"]))
        # Nothing of its own cell uses it: it was meant for later ones.
        messages = self.good("let h = |x: i32| x + 1;")
        self.assertIn("Box<dyn Fn(i32) -> i32>", text(messages, "stderr"))
        self.good("let kept: Box<dyn Fn(i32) -> i32> = Box::new(|x| x + 1);")
        self.assertEqual(plain(self.good("kept(2)")), ["3"])

    def test_what_is_borrowed_serves_its_cell(self):
        self.good("let words = vec![String::from(\"a\"), String::from(\"b\")];")
        messages = self.good("let first = &words[0]; println!(\"{first}\");")
        self.assertEqual(text(messages), "a\n")
        messages = self.good("let second = &words[1];")
        self.assertIn("second is for this cell alone", text(messages, "stderr"))
        self.assertEqual(plain(self.good("words.len()")), ["2"])

    def test_what_the_last_line_uses_up_is_drawn(self):
        messages = self.good('let d = df!("a" => [1, 2])?;\nd.lazy().select([col("a").sum()]).collect()?')
        self.assertIn("text/html", of(messages, "display_data")[-1]["data"])
        messages = self.good('let table: Frame = df!("s" => ["a", "b"], "y" => [1.5, 2.5])?.into();\nFigure::bar(&table, "s", "y")')
        self.assertIn("image/svg+xml", of(messages, "display_data")[-1]["data"])
        self.assertEqual(plain(self.good("let v = vec![3, 1];\nv.iter().max()")), ["Some(3)"])

    def test_warnings_are_no_errors(self):
        self.good("macro_rules! twice { ($x:expr) => { $x * 2 } }")
        reply = self.bad("let wrong: String = 1;")
        self.assertIn("mismatched types", reply["evalue"])
        shown = "\n".join(reply["traceback"])
        self.assertNotIn("unused macro", shown)
        self.assertNotIn("rust_analyzer", shown)

    def test_mistakes_come_with_advice(self):
        self.good("let owned = String::from(\"a\");")
        for code, advice in [("let a = owned; let b = owned;", "clone()"), ("let x = 2.5 * 2;", "as f64"), ("let v = vec![1]; v.push(2);", "let mut v")]:
            self.assertIn(advice, "\n".join(self.bad(code)["traceback"]), code)

    def test_types_of_cells_outlive_new_ones(self):
        self.good("#[derive(Debug)] struct Point { x: f64 }\nlet p = Point { x: 1.0 };")
        self.good("trait Double { fn double(&self) -> f64; } impl Double for Point { fn double(&self) -> f64 { 2.0 * self.x } }")
        self.assertEqual(plain(self.good("p.double()")), ["2.0"])
        folder = tempfile.TemporaryDirectory()
        self.addClassCleanup(folder.cleanup)  # every cell of the session is compiled with it
        Path(folder.name, "src").mkdir()
        Path(folder.name, "Cargo.toml").write_text('[package]\nname = "one"\nversion = "1.0.0"\nedition = "2024"\n')
        Path(folder.name, "src/lib.rs").write_text("pub fn one() -> f64 { 1.0 }\n")
        self.good(f':dep one = {{ path = "{folder.name}" }}\nlet three = one::one() + p.double();')
        self.assertEqual(plain(self.good("three + p.x")), ["4.0"])

    def test_showing_and_printing(self):
        messages = self.good('let tall = figure::passkey(&Frame::load("phase1")?)?; tall.show(); tall.show(); println!("{tall}");')
        self.assertEqual(len(of(messages, "display_data")), 2)
        self.assertIn("1024", text(messages))

    def test_much_output_is_quick_and_cut(self):
        began = time.monotonic()
        messages = self.good("for i in 0..200000 { println!(\"{i}\"); }")
        self.assertLess(time.monotonic() - began, 10)
        self.assertLess(len(of(messages, "stream")), 300)
        said = text(messages, "stderr")
        path = re.search(r"all of it is in (\S+)", said).group(1)
        lines = Path(path).read_text().split()
        self.assertEqual((len(lines), lines[-1]), (200000, "199999"))
        self.assertEqual(plain(self.good("1 + 1")), ["2"])

    def test_long_lines_and_floods_of_errors(self):
        self.assertEqual(len(text(self.good("print!(\"{}\", \"x\".repeat(900000));"))), 900000)
        self.assertIn("4999\n", text(self.good("for i in 0..5000 { eprintln!(\"{i}\"); }"), "stderr"))
        threads = "std::thread::scope(|s| { for t in 0..4 { s.spawn(move || for i in 0..100 { println!(\"{t} {i}\"); }); } });"
        self.assertEqual(len(text(self.good(threads)).splitlines()), 400)


class Stops(OneKernel):
    def test_an_endless_print_stops(self):
        for code in ["for i in 0.. { println!(\"{i}\"); }", "loop { print!(\".\"); }", "loop { eprintln!(\"no\"); }"]:
            self.kernel.run("let kept = vec![1, 2, 3];")
            request = self.kernel.send(code)
            time.sleep(1.5)
            self.kernel.manager.interrupt_kernel()
            asked = time.monotonic()
            list(self.kernel.published(request))
            reply = self.kernel.reply(request)
            self.assertEqual((reply["status"], reply["evalue"]), ("error", "interrupted"), code)
            self.assertLess(time.monotonic() - asked, 5)
            self.assertEqual(plain(self.kernel.run("kept.len()")[1]), ["3"])

    def test_a_cell_that_does_not_listen_is_told_so(self):
        self.kernel.run("1 + 1")
        request = self.kernel.send("println!(\"asleep\"); std::thread::sleep(std::time::Duration::from_secs(4));")
        for message in self.kernel.published(request, until_idle=False):
            if message["msg_type"] == "stream":
                break
        self.kernel.manager.interrupt_kernel()
        messages = list(self.kernel.published(request))
        self.assertIn("all variables are lost", text(messages, "stderr"))
        self.assertEqual(self.kernel.reply(request)["status"], "ok")

    def test_an_end_of_the_process_is_told_once(self):
        for code in ["std::process::exit(3)", "fn deep(n: u64) -> u64 { if n == 0 { 0 } else { 1 + deep(n + 1) } }\ndeep(1)"]:
            reply, _ = self.kernel.run(code)
            self.assertEqual(reply["ename"], "SessionEnded", code)
            self.assertEqual(plain(self.kernel.run("1 + 1")[1]), ["2"])


class First(unittest.TestCase):
    def test_the_first_cell_draws_its_value(self):
        kernel = Kernel()
        self.addCleanup(kernel.close)
        _, messages = kernel.run('Frame::load("phase1")?')
        self.assertIn("text/html", of(messages, "display_data")[0]["data"])


class Protocol(OneKernel):
    def ask(self, request):
        return self.kernel.reply(request)

    def test_replies_hold_what_the_protocol_wants(self):
        reply, _ = self.kernel.run("1 + 1")
        self.assertEqual(reply["user_expressions"], {})
        for code, status in [("1 + 1", "complete"), ("fn f() {", "incomplete"), ("fn )", "invalid"), (":vars", "complete")]:
            self.assertEqual(self.ask(self.kernel.client.is_complete(code))["status"], status, code)

    def test_completions_are_names(self):
        found = self.ask(self.kernel.client.complete("Model::lo"))["matches"]
        self.assertIn("load", found)
        self.assertFalse([name for name in found if "(" in name])


if __name__ == "__main__":
    unittest.main()
