"""Loaded by every Python process that has this folder on its path: kills the one that is named, at a write.

    THINNER_FAULT="WORD NUMBER WHEN"    e.g. "program.py 7 after"
    THINNER_FAULT_ROOT                  writes below this folder count
    THINNER_FAULT_FELL                  a file that is made when it has happened, for nobody is killed twice

The process is one whose command line has WORD. WHEN is `before` the NUMBERth opening for writing, rename or removal, or
`after` it, which is between the opening (that has emptied the file) and what would have been written next.
"""

import os
import signal
import sys


def _arm(word: str, number: int, when: str, root: str, fell: str) -> None:
    # orig_argv is "-m" for a module that is being looked for; the command line is what the kernel knows
    with open("/proc/self/cmdline", "rb") as file:
        command = file.read().replace(b"\0", b" ").decode(errors="replace")
    if word not in command:
        return
    left = number

    def counts(event: str, arguments: tuple) -> bool:
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
        elif event in ("os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir"):
            path, writes = arguments[0], True
        else:
            return False
        return bool(writes) and isinstance(path, str | bytes) and os.path.abspath(os.fsdecode(path)).startswith(root)

    def fall() -> None:
        if not os.path.exists(fell):
            os.close(os.open(fell, os.O_CREAT | os.O_WRONLY))
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple) -> None:
        nonlocal left
        if left == 0:  # `after`: the next thing that happens, whatever it is
            left = -1
            fall()
        elif left > 0 and counts(event, arguments):
            left -= 1
            if left == 0 and when == "before":
                left = -1
                fall()

    sys.addaudithook(hook)


if "THINNER_FAULT" in os.environ:
    _word, _number, _when = os.environ["THINNER_FAULT"].rsplit(" ", 2)
    _arm(_word, int(_number), _when, os.environ["THINNER_FAULT_ROOT"], os.environ["THINNER_FAULT_FELL"])
