"""The kernel as a Jupyter client sees it. Run by .ci/run, or after `cargo lab setup`:

    .lab/venv/bin/python -m unittest discover -v crate/jupyter/tests
"""
import os
import re
import time
import unittest
from pathlib import Path
from queue import Empty

from jupyter_client.manager import KernelManager

ROOT = Path(__file__).resolve().parents[3]
START = 120  # seconds; a bound on hanging, not a target
CELL = 120


class Kernel:
    """A kernel with its client; `run` gives the reply and everything that was published."""

    def __init__(self, **environment):
        self.manager = KernelManager(kernel_name="lowbit")
        self.manager.start_kernel(env={**os.environ, **environment}, cwd=str(ROOT / "notebooks"))
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=START)

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel()

    def send(self, code, **options):
        return self.client.execute(code, **options)

    def published(self, request, timeout=CELL, until_idle=True):
        """Messages that answer to a request, each with the time when it came."""
        ends = time.monotonic() + timeout
        while time.monotonic() < ends:
            try:
                message = self.client.get_iopub_msg(timeout=0.2)
            except Empty:
                continue
            if message["parent_header"].get("msg_id") != request:
                continue
            message["at"] = time.monotonic()
            yield message
            if until_idle and message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return
        raise TimeoutError(f"no end within {timeout} s")

    def reply(self, request, timeout=CELL):
        ends = time.monotonic() + timeout
        while time.monotonic() < ends:
            message = self.client.get_shell_msg(timeout=timeout)
            if message["parent_header"].get("msg_id") == request:
                return message["content"]
        raise TimeoutError

    def run(self, code, **options):
        return self.end(self.send(code, **options))

    def end(self, request):
        """The reply to a request, and what was published; of outputs that were cleared a front end shows nothing."""
        messages = []
        for message in self.published(request):
            if message["msg_type"] == "clear_output":
                messages = [one for one in messages if one["msg_type"] not in {"stream", "display_data"}]
            messages.append(message)
        return self.reply(request), messages


def of(messages, *kinds):
    return [message["content"] for message in messages if message["msg_type"] in kinds]


def text(messages, name="stdout"):
    return "".join(part["text"] for part in of(messages, "stream") if part["name"] == name)


def plain(messages):
    return [part["data"].get("text/plain") for part in of(messages, "display_data", "execute_result")]


class OneKernel(unittest.TestCase):
    """Tests that share a kernel."""

    @classmethod
    def setUpClass(cls):
        cls.kernel = Kernel()
        cls.addClassCleanup(cls.kernel.close)

    def good(self, code):
        reply, messages = self.kernel.run(code)
        self.assertEqual(reply["status"], "ok", reply.get("traceback"))
        return messages

    def bad(self, code):
        reply, messages = self.kernel.run(code)
        self.assertEqual(reply["status"], "error", messages)
        published = of(messages, "error")
        self.assertEqual([(error["ename"], error["evalue"]) for error in published], [(reply["ename"], reply["evalue"])])
        return reply


class Cells(OneKernel):
    """One kernel for what leaves it as it was."""

    def test_variables_live_across_cells(self):
        self.good("let seven = 7;")
        self.assertEqual(plain(self.good("seven * 6")), ["42"])
        self.assertEqual(plain(self.good('"text\\nas it is"')), ["text\nas it is"])
        self.assertEqual(plain(self.good("()")), [])

    def test_lowbit_is_there(self):
        self.good('let tiny = Model::load("random:mamba2-tiny")?;')
        shown = of(self.good("tiny"), "display_data")[0]["data"]
        self.assertIn("3.52 M", shown["text/plain"])
        self.assertIn("mamba2", shown["text/html"])
        figure = 'figure::passkey(&Frame::load("phase1")?)?'
        shown = of(self.good(figure), "display_data")[0]["data"]
        self.assertIn("<svg", shown["image/svg+xml"])
        self.assertIn("layer", shown["application/vnd.vegalite.v5+json"])
        shown = of(self.good("Tensor::zeros((2, 3), DType::F32, &Device::Cpu)?"), "display_data")[0]["data"]
        self.assertIn("[2, 3]", shown["text/html"])

    def test_paths_are_those_of_the_project(self):
        self.assertEqual(plain(self.good('std::path::Path::new("data/models/bard/config.json").exists()')), ["true"])

    def test_a_question_mark_stops_with_one_sentence(self):
        reply = self.bad('let missing = Model::load("no/such/model")?;')
        self.assertEqual(reply["ename"], "Error")
        self.assertIn("no/such/model", reply["evalue"])
        self.assertEqual(len(reply["evalue"].splitlines()), 1)
        self.assertNotIn("backtrace", "".join(reply["traceback"]).lower())

    def test_a_panic_stops_and_keeps_variables(self):
        self.good("let kept = vec![1, 2, 3];")
        reply = self.bad('println!("{}", kept[7]);')
        self.assertEqual(reply["ename"], "Panic")
        self.assertIn("index out of bounds", reply["evalue"])
        self.assertNotIn("backtrace", "".join(reply["traceback"]).lower())
        self.assertEqual(plain(self.good("kept.len()")), ["3"])

    def test_a_mistake_is_marked_in_the_cell(self):
        reply = self.bad("let number: i32 = \"text\";")
        self.assertEqual(reply["ename"], "CompileError")
        self.assertIn("mismatched types", reply["evalue"])
        plainly = re.sub("\x1b\\[[0-9;]*m", "", "\n".join(reply["traceback"]))
        self.assertIn('let number: i32 = "text";', plainly)
        self.assertIn("expected `i32`, found `&str`", plainly)

    def test_text_without_a_newline_shows_and_in_order(self):
        messages = self.good('print!("a"); println!("b"); print!("c");')
        self.assertEqual(text(messages), "ab\nc")
        self.assertEqual(text(self.good('eprint!("oh")'), "stderr"), "oh")

    def test_output_is_live(self):
        code = 'print!("first"); std::thread::sleep(std::time::Duration::from_millis(1500)); println!(" last");'
        times = {}
        for message in self.kernel.published(self.kernel.send(code)):
            if message["msg_type"] == "stream":
                times[message["content"]["text"].strip()] = message["at"]
        self.assertGreater(times["last"] - times["first"], 1.0)

    def test_every_display_of_a_cell_shows(self):
        code = 'for i in 0..3 { show(&format!("value {i}")); println!("after {i}"); }'
        messages = self.good(code)
        self.assertEqual(plain(messages), ["value 0", "value 1", "value 2"])
        kinds = [m["msg_type"] for m in messages if m["msg_type"] in ("stream", "display_data")]
        self.assertEqual(kinds[:2], ["display_data", "stream"])

    def test_progress_moves_in_place(self):
        code = """
            let bar = lowbit::progress::Progress::new("counting", 20, "steps");
            for _ in 0..20 { std::thread::sleep(std::time::Duration::from_millis(60)); bar.tick(1)?; }
            drop(bar);"""
        messages = self.good("{" + code + "}")
        first = of(messages, "display_data")
        updates = of(messages, "update_display_data")
        self.assertEqual(len(first), 1)
        self.assertGreater(len(updates), 4)
        self.assertEqual({u["transient"]["display_id"] for u in updates}, {first[0]["transient"]["display_id"]})
        self.assertIn("20/20 steps in", updates[-1]["data"]["text/plain"])

    def test_completion_and_inspection(self):
        code = "let m = Passkey::len"
        request = self.kernel.client.complete(code, len(code))
        reply = self.kernel.reply(request)
        self.assertTrue(any(match.startswith("lengths") for match in reply["matches"]), reply["matches"])
        self.assertEqual(code[reply["cursor_start"]:reply["cursor_end"]], "len")
        request = self.kernel.client.inspect("Passkey", 7)
        reply = self.kernel.reply(request)
        self.assertTrue(reply["found"])
        self.assertIn("Passkey", reply["data"]["text/plain"])

    READ = 'print!("Name: "); let mut name = String::new(); std::io::stdin().read_line(&mut name).unwrap();'

    def test_a_cell_that_reads_asks_the_person(self):
        request = self.kernel.send(self.READ)
        question = self.kernel.client.get_stdin_msg(timeout=CELL)
        self.assertEqual(question["msg_type"], "input_request")
        self.kernel.client.input("Ada")
        self.assertEqual(self.kernel.reply(request)["status"], "ok")
        self.assertEqual(text(self.kernel.published(request)), "Name: ")
        self.assertEqual(plain(self.good("name.clone()")), ["Ada\n"])

    def test_a_cell_that_reads_where_nobody_types_fails(self):
        for _ in range(2):
            reply, _ = self.kernel.run(self.READ, allow_stdin=False)
            self.assertEqual(reply["status"], "error")
            self.assertIn("standard input", reply["evalue"])
        self.good("1 + 1")

    def test_a_crate_that_lowbit_brings_is_hinted_at(self):
        _, messages = self.kernel.run(':dep candle-core = { path = "no/such/folder" }')
        self.assertIn("use lowbit::candle_core;", text(messages, "stderr"))

    def test_commands_of_evcxr_work(self):
        self.good("let listed = 1.5f32;")
        shown = of(self.good(":vars"), "display_data")[0]["data"]
        self.assertIn("listed", shown["text/plain"])


class Interrupts(unittest.TestCase):
    def setUp(self):
        self.kernel = Kernel()
        self.addCleanup(self.kernel.close)

    LONG = """{
        let bar = lowbit::progress::Progress::new("waiting", 100_000, "steps");
        println!("begun");
        loop { std::thread::sleep(std::time::Duration::from_millis(10)); bar.tick(1)?; }
    }"""

    def begin(self, code):
        request = self.kernel.send(code)
        for message in self.kernel.published(request, until_idle=False):
            if message["msg_type"] == "stream":
                return request

    def test_one_interrupt_keeps_every_variable(self):
        self.kernel.run("let kept = 12;")
        request = self.begin(self.LONG)
        asked = time.monotonic()
        self.kernel.manager.interrupt_kernel()
        reply = self.kernel.reply(request)
        self.assertLess(time.monotonic() - asked, 0.5)
        self.assertEqual(reply["status"], "error")
        self.assertIn("interrupted", reply["evalue"])
        list(self.kernel.published(request))
        _, messages = self.kernel.run("kept")
        self.assertEqual(plain(messages), ["12"])

    def test_a_stop_that_overtakes_its_cell_is_for_it(self):
        client = self.kernel.client
        content = {"code": 'for i in 0.. { println!("{i}"); }', "silent": False, "store_history": True,
                   "user_expressions": {}, "allow_stdin": False, "stop_on_error": True}
        cell = client.session.msg("execute_request", content)
        self.kernel.manager.interrupt_kernel()
        time.sleep(0.05)
        client.shell_channel.send(cell)
        request = cell["header"]["msg_id"]
        reply = self.kernel.reply(request)
        self.assertEqual((reply["status"], reply["evalue"]), ("error", "interrupted before it began"))
        list(self.kernel.published(request))
        self.kernel.manager.interrupt_kernel()  # of nothing: what is sent after it runs
        time.sleep(0.05)  # it is on its way, and would stop what runs when it comes
        reply, messages = self.kernel.run("1 + 1")
        self.assertEqual((reply["status"], plain(messages)), ("ok", ["2"]))

    def test_an_interrupt_ends_the_wait_for_a_person(self):
        self.kernel.run("let kept = 12;")
        request = self.kernel.send("let line = std::io::read_to_string(std::io::stdin()).unwrap();")
        self.kernel.client.get_stdin_msg(timeout=CELL)
        self.kernel.manager.interrupt_kernel()
        reply = self.kernel.reply(request)
        self.assertEqual((reply["status"], reply["evalue"]), ("error", "interrupted"))
        list(self.kernel.published(request))
        _, messages = self.kernel.run("kept")
        self.assertEqual(plain(messages), ["12"])

    def test_a_second_interrupt_ends_what_does_not_listen(self):
        request = self.begin('println!("begun"); loop { std::thread::sleep(std::time::Duration::from_millis(10)); }')
        self.kernel.manager.interrupt_kernel()
        time.sleep(0.3)
        self.kernel.manager.interrupt_kernel()
        reply = self.kernel.reply(request)
        self.assertEqual((reply["status"], reply["ename"]), ("error", "SessionEnded"))
        list(self.kernel.published(request))
        reply, messages = self.kernel.run("1 + 1")
        self.assertEqual((reply["status"], plain(messages)), ("ok", ["2"]))

    def test_a_crash_is_told_and_the_session_goes_on(self):
        reply, _ = self.kernel.run("std::process::exit(3)")
        self.assertEqual((reply["status"], reply["ename"]), ("error", "SessionEnded"))
        self.assertIn("variables are gone", reply["evalue"])
        _, messages = self.kernel.run('Model::load("random:mamba2-tiny")?.parameters()')
        self.assertEqual(plain(messages), ["3521984"])
        # What ties the new process to the kernel is there again: a panic is still one sentence.
        reply, _ = self.kernel.run('panic!("again")')
        self.assertEqual(reply["evalue"], "again")


class Several(unittest.TestCase):
    def test_two_kernels_do_not_meet_and_leave_nothing(self):
        kernels = [Kernel(), Kernel()]
        for number, kernel in enumerate(kernels):
            kernel.run(f"let mine = {number};")
        self.assertEqual([plain(kernel.run("mine")[1]) for kernel in kernels], [["0"], ["1"]])
        running = set(os.listdir(ROOT / ".lab/sessions"))
        self.assertGreaterEqual(len(running), 2)
        for kernel in kernels:
            kernel.close()
        left = set(os.listdir(ROOT / ".lab/sessions"))
        self.assertEqual(len(running - left), 2)

    def test_a_restart_begins_anew(self):
        kernel = Kernel()
        self.addCleanup(kernel.close)
        kernel.run("let gone = 1;")
        kernel.manager.restart_kernel()
        kernel.client.wait_for_ready(timeout=START)
        reply, _ = kernel.run("gone")
        self.assertEqual(reply["ename"], "CompileError")
        self.assertEqual(plain(kernel.run("2 + 2")[1]), ["4"])


if __name__ == "__main__":
    unittest.main()
