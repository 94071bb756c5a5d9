"""ComfyUI as comfyui.Server starts it: it ends when the other end of its standard input is closed, so also when the
process that holds it is killed. The first argument is a folder to delete then, or empty; the others are ComfyUI's.
"""

import gc
import os
import runpy
import shutil
import sys
import threading

scratch = sys.argv.pop(1)


def end_with_the_other() -> None:
    sys.stdin.buffer.read()
    if scratch:
        shutil.rmtree(scratch, ignore_errors=True)
    os._exit(0)


threading.Thread(target=end_with_the_other, daemon=True).start()
gc.set_threshold(20_000)  # or starting takes an eighth longer: it makes a million objects that stay
sys.argv[0] = "main.py"
sys.path[0] = os.getcwd()
runpy.run_path("main.py", run_name="__main__")
