# One kind of steady traffic, until standard input ends; then one JSON object on standard output.
# Arguments: KIND ADDRESS PORT. Paced, so that it loads a machine of two cores by a few per cent.
import errno, json, select, socket, struct, sys, threading, time

kind, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
told = {"kind": kind, "to": f"{address} {port}", "tried": 0, "through": 0, "broken": 0, "worst_ms": 0, "errors": {}}
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()


def error(what):
    what = errno.errorcode.get(what.errno, str(what)) if isinstance(what, OSError) and what.errno else str(what)
    told["errors"][what] = told["errors"].get(what, 0) + 1


def conversation():
    """One connection for the whole time: every line must come back. Broken once is broken for good."""
    s = socket.create_connection((address, port), 5)
    s.settimeout(10)
    print("ready", flush=True)
    while not over.wait(0.02):
        told["tried"] += 1
        start, line = time.monotonic(), b"%09d\n" % told["tried"]
        try:
            s.sendall(line)
            got = b""
            while len(got) < len(line):
                part = s.recv(len(line) - len(got))
                if not part:
                    raise OSError(errno.ECONNRESET, "closed")
                got += part
            told["through"] += got == line
        except OSError as e:
            told["broken"] = 1
            error(e)
            return
        told["worst_ms"] = max(told["worst_ms"], int((time.monotonic() - start) * 1000))


def accepted():
    """Serves one connection from outside, as an SSH server would; the far side keeps the count."""
    server = socket.create_server((address, port), family=family)
    print("ready", flush=True)
    c, _ = server.accept()
    c.setblocking(False)
    while not over.is_set():
        select.select([c], [], [], 0.1)
        try:
            while data := c.recv(65536):
                told["tried"] += 1
                c.send(data)
                told["through"] += 1
        except BlockingIOError:
            pass
        except OSError as e:
            told["broken"] = 1
            error(e)
            return


def datagrams():
    """Asks and waits for the echo, from one socket."""
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.connect((address, port))
    s.settimeout(1)
    print("ready", flush=True)
    while not over.wait(0.02):
        told["tried"] += 1
        try:
            s.send(b"%09d" % told["tried"])
            told["through"] += s.recv(100) == b"%09d" % told["tried"]
        except OSError as e:
            error(e)


def names():
    """A name never asked for before, and a connection to it at once: `address` is the domain, `{}` in it the number."""
    print("ready", flush=True)
    while not over.wait(0.05):
        name = address.replace("{}", str(told["tried"]))
        told["tried"] += 1
        start = time.monotonic()
        try:
            with socket.create_connection((name, port), 5) as s:
                s.sendall(b"hello")
                told["through"] += s.recv(5) == b"hello"
        except OSError as e:
            error(e)
        told["worst_ms"] = max(told["worst_ms"], int((time.monotonic() - start) * 1000))


def forbidden():
    """What must not pass: datagrams, connections, a query for a name no rule allows, and a frame below the sockets."""
    print("ready", flush=True)
    u = socket.socket(family, socket.SOCK_DGRAM)
    tunnel = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05leaks\x09forbidden\x07example\x00\x00\x01\x00\x01"
    while not over.wait(0.002):
        told["tried"] += 3
        for what in (
            lambda: u.sendto(b"leak", (address, port)),
            lambda: u.sendto(tunnel, ("203.0.113.53", 53)),
            lambda: connect(),
        ):
            try:
                what()
            except OSError as e:
                error(e)


def connect():
    t = socket.socket(family, socket.SOCK_STREAM)
    t.setblocking(False)
    try:
        t.connect((address, port))
    except BlockingIOError:
        pass
    finally:
        t.close()


def frames():
    """Datagrams as Ethernet frames; `address` is INTERFACE/SOURCE/DESTINATION."""
    interface, source, destination = address.split("/")
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    s.bind((interface, 0x0800))
    udp = struct.pack("!HHHH", 9, port, 12, 0) + b"leak"
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(destination))
    total = sum(struct.unpack("!10H", ip))
    total = (total & 0xFFFF) + (total >> 16)
    ip = ip[:10] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + ip[12:]
    print("ready", flush=True)
    while not over.wait(0.002):
        told["tried"] += 1
        try:
            s.send(b"\xff" * 6 + b"\x02" * 6 + b"\x08\x00" + ip + udp)
        except OSError as e:
            error(e)


{f.__name__: f for f in (conversation, accepted, datagrams, names, forbidden, frames)}[kind]()
over.wait()
print(json.dumps(told), flush=True)
