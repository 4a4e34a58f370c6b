"""Ask the agent for something by the control socket, in words of one's own: PATH JSON..."""

import json
import socket
import sys

with socket.socket(socket.AF_UNIX) as one:
    one.connect(sys.argv[1])
    answers = one.makefile()
    for line in sys.argv[2:]:
        one.sendall(line.encode() + b"\n")
        told = json.loads(answers.readline())
        print("WORKED" if told["ok"] else "refused", told)
