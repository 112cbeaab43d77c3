"""`lfm2vl chat` on a terminal: a pseudo-terminal, with keys as a user types them.

    python3 chat_terminal.py PROGRAM MODEL_FOLDER ENDLESS_MODEL_FOLDER IMAGE

The first model answers "Hello" and "Describe this image."; the second one does not end its answers soon. IMAGE
shows a green square and a blue triangle. Needs a folder of its own as the current one.
"""

import contextlib
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import stat
import sys
import time

PATIENCE = 60
ENTER, UP, TAB, CTRL_C, CTRL_D = "\r", "\x1b[A", "\t", "\x03", "\x04"
PROMPT = "> "
HELLO = "Hello! I can tell you about the shapes, colours and numbers in your images."
SHAPES = "This image shows a green square and a blue triangle."


class Chat:
    """A run of the program."""

    def __init__(self, program, folder, stdout=None, state="state"):
        self.seen = ""
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.environ |= {"TERM": "xterm", "XDG_STATE_HOME": os.path.abspath(state)}
            if stdout:
                os.dup2(os.open(stdout, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            os.execv(program, [program, "chat", folder])
        self.greeting = self.until(PROMPT)

    def type(self, *keys):
        os.write(self.terminal, "".join(keys).encode())

    def until(self, text):
        """Reads until the text is there; gives what came before it."""
        deadline = time.monotonic() + PATIENCE
        while text not in (plain := self.plain()):
            ready, _, _ = select.select([self.terminal], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no {text!r} in {PATIENCE} s, but {plain!r}"
            try:
                new = os.read(self.terminal, 4096)
            except OSError:
                new = b""
            assert new, f"it ended without {text!r}: {plain!r}"
            self.seen += new.decode(errors="replace")
        before, _, after = plain.partition(text)
        self.seen = after
        return before

    def plain(self):
        """What was written, without what moves the cursor, and with one kind of line ends."""
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.seen)
        return re.sub(r"\r+\n", "\n", text)

    def ask(self, *keys, answer):
        """Types a message, and reads its answer and the next prompt."""
        self.type(*keys, ENTER)
        self.until(answer + "\n")
        self.until(PROMPT)

    def leave(self, *keys):
        self.type(*keys)
        with contextlib.suppress(OSError):
            while os.read(self.terminal, 4096):
                pass
        _, status = os.waitpid(self.pid, 0)
        os.close(self.terminal)
        assert os.waitstatus_to_exitcode(status) == 0, status


def history(state="state"):
    return pathlib.Path(state, "lfm2vl/history").read_text().splitlines()[1:]


def lines_and_history(program, folder):
    chat = Chat(program, folder)
    # A line that goes on, and text that is pasted.
    chat.type("Hello\\", ENTER)
    assert HELLO not in chat.until(". ")
    chat.ask("Hello", answer=HELLO)
    chat.type("\x1b[200~Hello\r\nHello\\\r\nHello\x1b[201~")
    chat.ask(answer=HELLO)
    # A line that is given up is no message.
    chat.type("/unknown ", CTRL_C)
    assert HELLO not in chat.until(PROMPT)
    chat.leave("/qu", TAB, ENTER)
    assert history() == ["Hello\\nHello", "Hello\\nHello\\\\\\nHello", "/quit"], history()
    mode = stat.S_IMODE(os.stat("state/lfm2vl/history").st_mode)
    assert mode & 0o077 == 0, f"others can read it: {mode:o}"

    # Another run has them, too: the last but two lines, of which the cursor goes up through each.
    chat = Chat(program, folder)
    chat.type(UP)
    chat.until("/quit")
    chat.type(UP, UP, UP, UP)
    chat.ask("!", answer=HELLO)
    chat.leave(CTRL_D)
    assert history()[-1] == "Hello\\nHello!", history()


def files(program, folder, image):
    shutil.copy(image, "an image.png")
    chat = Chat(program, folder)
    chat.type("/im", TAB, "an", TAB)
    chat.until("an image.png")
    chat.type(ENTER)
    chat.until(PROMPT)
    chat.ask("Describe this image.", answer=SHAPES)
    chat.leave(CTRL_D)
    assert "/image an image.png" in history(), history()


def stopping(program, endless):
    chat = Chat(program, endless)
    chat.type("Hello", ENTER)
    chat.until("Hello!")
    chat.type(CTRL_C)
    chat.until("(stopped)")
    chat.until(PROMPT)
    # It goes on, with what it had said.
    chat.type("Hello", ENTER)
    chat.until("\n")
    chat.until(" ")
    chat.type(CTRL_C)
    chat.until("(stopped)")
    chat.until(PROMPT)
    chat.leave(CTRL_D)


def answers_alone(program, folder):
    """The standard output may be a file, which has the answers and nothing else."""
    chat = Chat(program, folder, stdout="answers.txt")
    chat.type("Hello", ENTER)
    chat.until(PROMPT)
    chat.leave(CTRL_D)
    assert pathlib.Path("answers.txt").read_text() == HELLO + "\n"


def no_history(program, folder):
    """Where it cannot be kept, that is told once, and all goes on without."""
    pathlib.Path("file").write_text("")
    chat = Chat(program, folder, state="file")
    assert chat.greeting.count("warning: the history is not kept in ") == 1, chat.greeting
    chat.type("Hello", ENTER)
    assert "warning" not in chat.until(HELLO)
    # The lines of this run are there all the same.
    chat.until(PROMPT)
    chat.type(UP)
    chat.until("Hello")
    chat.type(CTRL_C)
    chat.until(PROMPT)
    chat.leave(CTRL_D)


def main():
    program, folder, endless, image = sys.argv[1:]
    signal.alarm(10 * PATIENCE)
    lines_and_history(program, folder)
    files(program, folder, image)
    stopping(program, endless)
    answers_alone(program, folder)
    no_history(program, folder)


main()
