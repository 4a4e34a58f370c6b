"""Keep 40 MiB, after giving back what made one the first to be killed."""

import signal

print("before-it", flush=True)
with open("/proc/self/oom_score_adj", "w") as score:
    score.write("0")
eaten = [bytearray(b"x") * (1 << 20) for _ in range(40)]
signal.pause()
