"""How clients interrupt, restart and leave: jupyter_client, nbclient, VS Code, several at once. Run as test_kernel.py is."""
import os
import time
import unittest

import nbformat
from jupyter_client import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

from test_kernel import CELL, ROOT, START, Kernel, OneKernel, of, plain, text

ENDLESS = 'println!("begun"); for i in 0.. { println!("{i}"); std::thread::sleep(std::time::Duration::from_millis(20)); }'
DEAF = 'println!("begun"); loop { std::hint::spin_loop(); }'


def notebook(*cells):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in cells])


class Asking(Kernel):
    """A kernel that is asked on the control channel as VS Code asks it."""

    def control(self, kind, **content):
        message = self.client.session.msg(kind, content)
        self.client.control_channel.send(message)
        while True:
            reply = self.client.get_control_msg(timeout=10)
            if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                return reply

    def begin(self, code):
        request = self.send(code)
        for message in self.published(request, until_idle=False):
            if message["msg_type"] == "stream":
                return request

    def value(self, code):
        return plain(self.run(code)[1])


class Notebooks(unittest.TestCase):
    def execute(self, cells, **options):
        client = NotebookClient(notebook(*cells), kernel_name="lowbit", resources={"metadata": {"path": str(ROOT / "notebooks")}}, **options)
        return [cell.outputs for cell in client.execute().cells]

    def test_a_cell_that_takes_too_long_is_interrupted_and_the_next_ones_run(self):
        cells = ["let kept = 7;", ENDLESS, "kept"]
        outputs = self.execute(cells, timeout=20, interrupt_on_timeout=True, allow_errors=True)
        self.assertEqual([out["evalue"] for out in outputs[1] if out["output_type"] == "error"], ["interrupted"])
        self.assertEqual(outputs[2][0]["data"]["text/plain"], "7")


class Restarts(unittest.TestCase):
    def setUp(self):
        self.kernel = Asking()
        self.addCleanup(self.kernel.close)
        self.kernel.run("let gone = 1;")

    def is_new(self):
        self.kernel.client.wait_for_ready(timeout=START)
        self.assertIn("`gone`", self.kernel.run("gone")[0]["evalue"])
        self.assertEqual(self.kernel.value("1 + 1"), ["2"])

    def test_at_once_and_in_order_while_a_cell_runs(self):
        for code, now in [(ENDLESS, True), (DEAF, False)]:
            self.kernel.begin(code)
            asked = time.monotonic()
            self.kernel.manager.restart_kernel(now=now)
            self.assertLess(time.monotonic() - asked, 10)
            self.is_new()

    def test_as_vs_code_restarts(self):
        """It asks for a shutdown, and starts a process with the same ports."""
        manager = self.kernel.manager
        self.kernel.begin(DEAF)
        reply = self.kernel.control("shutdown_request", restart=True)
        self.assertEqual((reply["msg_type"], reply["content"]["restart"]), ("shutdown_reply", True))
        ends = time.monotonic() + 5
        while manager.is_alive() and time.monotonic() < ends:
            time.sleep(0.05)
        self.assertFalse(manager.is_alive())
        manager.start_kernel(cwd=str(ROOT / "notebooks"))
        self.is_new()


class Control(OneKernel):
    @classmethod
    def setUpClass(cls):
        cls.kernel = Asking()
        cls.addClassCleanup(cls.kernel.close)

    def test_an_interrupt_is_answered_while_a_cell_runs(self):
        self.good("let kept = 7;")
        request = self.kernel.begin(ENDLESS)
        self.assertEqual(self.kernel.control("interrupt_request")["msg_type"], "interrupt_reply")
        list(self.kernel.published(request))
        self.assertEqual(self.kernel.reply(request)["evalue"], "interrupted")
        self.assertEqual(self.kernel.value("kept"), ["7"])

    def test_an_interrupt_when_nothing_runs_is_answered_and_forgotten(self):
        for _ in range(3):
            self.assertEqual(self.kernel.control("interrupt_request")["msg_type"], "interrupt_reply")
        shown = self.kernel.value("println!(\"prints\"); 1 + 1")
        self.assertEqual(shown, ["2"])

    def test_what_waits_behind_a_cell_that_is_interrupted_is_not_run(self):
        first = self.kernel.begin(ENDLESS)
        rest = [self.kernel.send("1 + 1"), self.kernel.send("let behind = 1;")]
        time.sleep(0.3)
        self.kernel.control("interrupt_request")
        replies = {}
        while len(replies) < 3:
            message = self.kernel.client.get_shell_msg(timeout=CELL)
            replies[message["parent_header"]["msg_id"]] = message["content"]["status"]
        self.assertEqual([replies[request] for request in [first, *rest]], ["error", "aborted", "aborted"])
        self.assertEqual(self.kernel.value("1 + 1"), ["2"])


class Ends(unittest.TestCase):
    def test_a_shutdown_while_a_cell_runs_leaves_nothing(self):
        for code in [ENDLESS, DEAF]:
            kernel = Asking()
            self.addCleanup(kernel.close)
            home = KernelSpecManager().get_kernel_spec("lowbit").env["LOWBIT_HOME"]
            folder = os.path.join(home, ".lab/sessions", str(kernel.manager.provisioner.pid))
            self.assertTrue(os.path.exists(folder))
            kernel.begin(code)
            self.assertEqual(kernel.control("shutdown_request", restart=False)["msg_type"], "shutdown_reply")
            ends = time.monotonic() + 5
            while (kernel.manager.is_alive() or os.path.exists(folder)) and time.monotonic() < ends:
                time.sleep(0.05)
            self.assertFalse(kernel.manager.is_alive())
            self.assertFalse(os.path.exists(folder))


class Several(OneKernel):
    """Clients of one kernel."""

    def another(self):
        """The kernel with a client of its own, in a session of its own."""
        other = Kernel.__new__(Kernel)
        other.manager = self.kernel.manager
        other.client = BlockingKernelClient(connection_file=other.manager.connection_file)
        other.client.load_connection_file()
        other.client.start_channels()
        self.addCleanup(other.client.stop_channels)
        other.client.wait_for_ready(timeout=START)
        return other

    def test_one_goes_away_and_another_comes(self):
        gone = self.another()
        gone.send("for i in 0..30 { println!(\"{i}\"); std::thread::sleep(std::time::Duration::from_millis(100)); }\nlet late = 5;")
        gone.client.stop_channels()
        self.assertEqual(plain(self.another().run("late")[1]), ["5"])

    def test_two_at_once_get_their_own_answers(self):
        other = self.another()
        first = self.kernel.send('std::thread::sleep(std::time::Duration::from_millis(500)); println!("first"); 1')
        second = other.send('println!("second"); 2')
        for kernel, request, says, value in [(self.kernel, first, "first\n", "1"), (other, second, "second\n", "2")]:
            messages = list(kernel.published(request))
            self.assertEqual((text(messages), plain(messages)), (says, [value]))
            self.assertEqual(kernel.reply(request)["status"], "ok")

    def test_one_stops_what_another_runs(self):
        self.kernel.run("let kept = 7;")
        other = self.another()
        request = self.kernel.send(ENDLESS)
        for message in self.kernel.published(request, until_idle=False):
            if message["msg_type"] == "stream":
                break
        other.client.control_channel.send(other.client.session.msg("interrupt_request", {}))
        error = of(list(self.kernel.published(request)), "error")
        self.assertEqual([one["evalue"] for one in error], ["interrupted"])
        self.assertEqual(plain(other.run("kept")[1]), ["7"])


if __name__ == "__main__":
    unittest.main()
