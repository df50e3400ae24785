"""Jupyter's own suite of its protocol (jupyter_kernel_test), after `pip install -r crate/jupyter/tests/requirements.txt`.

What it skips the kernel does not have: a history (front ends keep their own), a pager, results apart from displays.
"""
import unittest

try:
    import jupyter_kernel_test
except ImportError:
    jupyter_kernel_test = None
    print("test_protocol.py is skipped: jupyter_kernel_test is not installed")


@unittest.skipIf(jupyter_kernel_test is None, "jupyter_kernel_test is not installed")
class Protocol(jupyter_kernel_test.KernelTests if jupyter_kernel_test else unittest.TestCase):
    kernel_name = "lowbit"
    language_name = "rust"
    file_extension = ".rs"
    code_hello_world = 'println!("hello, world");'
    code_stderr = 'eprintln!("test");'
    code_display_data = [
        {"code": '"text"', "mime": "text/plain"},
        {"code": 'figure::passkey(&Frame::load("phase1")?)?', "mime": "image/png"},
    ]
    code_generate_error = "None::<i32>.unwrap()"
    code_inspect_sample = "Model::load"
    completion_samples = [{"text": "Model::lo", "matches": {"load", "load_with"}}]
    complete_code_samples = ["1 + 1", "fn f() { }"]
    incomplete_code_samples = ["fn f() {", "let x = ("]
    invalid_code_samples = ["fn )"]


if __name__ == "__main__":
    unittest.main()
