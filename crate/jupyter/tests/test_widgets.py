"""Controls and bars that can be stopped, as a front end sees them that draws widgets."""
import time
import unittest

from test_kernel import OneKernel, plain

CONTROLS = 'slider("bits", 2..=8).start(4).and(choice("scheme", ["a", "b"])).and(toggle("on", false))'


class Widgets(OneKernel):
    def setUp(self):
        """Asks for all widgets, as JupyterLab does when it opens a notebook."""
        super().setUp()
        content = {"comm_id": "all", "target_name": "jupyter.widget.control", "data": {}}
        self.say("comm_open", content)

    def say(self, kind, content):
        """Sends a message on the shell channel; what comes until the kernel has worked on it."""
        client = self.kernel.client
        message = client.session.msg(kind, content)
        client.shell_channel.send(message)
        answers, ends = [], time.monotonic() + 30
        while time.monotonic() < ends:
            answer = client.get_iopub_msg(timeout=30)
            if answer["parent_header"].get("msg_id") == message["msg_id"]:
                answers.append((answer["msg_type"], answer["content"]))
                if answer["content"].get("execution_state") == "idle":
                    return answers
        raise TimeoutError(kind)

    def move(self, model, **state):
        """Moves a control; the plain form of what its closure made of it."""
        data = {"method": "update", "state": state, "buffer_paths": []}
        answers = self.say("comm_msg", {"comm_id": model, "data": data})
        return [content["data"]["text/plain"] for kind, content in answers if kind == "update_display_data"]

    def shown(self, cell):
        """Runs a cell; the models that it opens, by name, and its displays."""
        reply, messages = self.kernel.run(cell)
        self.assertEqual(reply["status"], "ok", reply)
        opened = [message["content"] for message in messages if message["msg_type"] == "comm_open"]
        models = {content["data"]["state"]["_model_name"]: content["comm_id"] for content in opened}
        return models, [message["content"] for message in messages if message["msg_type"] == "display_data"]

    def test_a_control_that_is_moved_changes_what_is_below_it(self):
        models, (view, first) = self.shown(CONTROLS + '.bind(|((bits, s), on)| format!("{bits} {s} {on}"));')
        self.assertEqual(first["data"]["text/plain"], "4 a false")
        self.assertIn("application/vnd.jupyter.widget-view+json", view["data"])
        self.assertIn("bits: 4 (slider, 2 to 8)", view["data"]["text/plain"])
        self.assertEqual(self.move(models["IntSliderModel"], value=7), ["7 a false"])
        self.assertEqual(self.move(models["DropdownModel"], index=1), ["7 b false"])
        self.assertEqual(self.move(models["CheckboxModel"], value=True), ["7 b true"])
        self.assertEqual(self.move(models["IntSliderModel"], value=99), ["8 b true"])

    def test_a_button_counts_and_a_panic_is_shown(self):
        models, _ = self.shown('button("again").bind(|n| { assert!(n != 2, "twice"); n });')
        click = {"method": "custom", "content": {"event": "click"}}
        texts = []
        for _ in range(3):
            answers = self.say("comm_msg", {"comm_id": models["ButtonModel"], "data": click})
            texts += [content["data"]["text/plain"] for kind, content in answers if kind == "update_display_data"]
        self.assertEqual(texts[::2], ["1", "3"])
        self.assertIn("twice", texts[1])
        self.assertEqual(plain(self.kernel.run("1 + 1")[1]), ["2"])

    def test_a_page_that_is_loaded_again_gets_the_models(self):
        models, _ = self.shown('slider("n", 0.0..=1.0).bind(|n| n * 2.0);')
        self.assertEqual(self.move(models["FloatSliderModel"], value=0.5), ["1.0"])
        answers = self.say("comm_msg", {"comm_id": "all", "data": {"method": "request_states"}})
        states = next(content["data"]["states"] for kind, content in answers if kind == "comm_msg")
        self.assertEqual(states[models["FloatSliderModel"]]["state"]["value"], 0.5)

    def test_controls_move_while_a_cell_runs_and_know_when_their_process_has_ended(self):
        models, _ = self.shown('slider("n", 1..=9).bind(|n| n * 2);')
        running = self.kernel.send("std::thread::sleep(std::time::Duration::from_secs(4)); 5")
        time.sleep(2)
        begun = time.monotonic()
        self.assertEqual(self.move(models["IntSliderModel"], value=3), ["6"])
        self.assertLess(time.monotonic() - begun, 2)
        self.assertEqual(self.kernel.end(running)[0]["status"], "ok")
        reply, messages = self.kernel.run("std::process::exit(3)")
        self.assertEqual(reply["ename"], "SessionEnded")
        closed = [message["content"]["comm_id"] for message in messages if message["msg_type"] == "comm_close"]
        self.assertIn(models["IntSliderModel"], closed)

    def test_the_button_beside_a_bar_stops_the_cell(self):
        self.kernel.run('let tiny = Model::load("random:mamba2-tiny")?; let kept = 1;')
        running = self.kernel.send("Passkey::lengths([2048]).trials(100_000).measure(&tiny)?")
        ends, stop = time.monotonic() + 60, None
        while stop is None and time.monotonic() < ends:
            message = self.kernel.client.get_iopub_msg(timeout=30)
            state = message["content"].get("data", {}).get("state", {})
            if message["msg_type"] == "comm_open" and state["_model_name"] == "ButtonModel":
                stop = message["content"]["comm_id"]
        click = {"method": "custom", "content": {"event": "click"}}
        message = self.kernel.client.session.msg("comm_msg", {"comm_id": stop, "data": click})
        self.kernel.client.shell_channel.send(message)
        reply, _ = self.kernel.end(running)
        self.assertEqual((reply["status"], reply["evalue"]), ("error", "interrupted"))
        self.assertEqual(plain(self.kernel.run("kept")[1]), ["1"])


if __name__ == "__main__":
    unittest.main()
