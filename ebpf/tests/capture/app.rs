//! An application of the tests: a process in a pod's namespace and cgroup that does what it is told, line by line.
//! Every line on standard input is one command; every command is answered by one line. Servers run until it ends.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Longer than any answer takes on a busy machine; a test that meets it has found a hang.
const PATIENCE: Duration = Duration::from_secs(5);

/// Loops of connections beside each other in `load`.
const LOOPS: usize = 8;

/// linux/socket.h
const MSG_FASTOPEN: libc::c_int = 0x2000_0000;

#[derive(Clone, Copy, Debug)]
struct UnicastIf;
nix::setsockopt_impl!(
    UnicastIf,
    libc::IPPROTO_IP,
    libc::IP_UNICAST_IF,
    i32,
    nix::sys::socket::sockopt::SetStruct<i32>
);

#[derive(Clone, Copy, Debug)]
struct BindToIfindex;
nix::setsockopt_impl!(
    BindToIfindex,
    libc::SOL_SOCKET,
    libc::SO_BINDTOIFINDEX,
    i32,
    nix::sys::socket::sockopt::SetStruct<i32>
);

fn main() -> io::Result<()> {
    let mut app = App::default();
    for line in io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match app.execute(&words) {
            Ok(answer) => format!("ok {answer}"),
            Err(error) => format!("err {}", name_of(&error)),
        };
        println!("{answer}");
    }
    Ok(())
}

#[derive(Default)]
struct App {
    connections: HashMap<String, BufReader<TcpStream>>,
    load: Option<Load>,
}

impl App {
    fn execute(&mut self, words: &[&str]) -> io::Result<String> {
        match *words {
            ["connect", id, to, ref options @ ..] => self.connect(id, to, options),
            ["say", id, text] => self.say(id, text),
            ["reroute", id, option] => {
                reroute(self.connection(id)?.get_ref(), option).map(|()| String::new())
            }
            ["hear", id] => hear(self.connection(id)?),
            ["close", id] => Ok(format!("{}", self.connections.remove(id).is_some())),
            ["listen", at] => listen(at),
            ["ask", to, text, ref options @ ..] => ask(to, text, options),
            ["answer", at] => answer(at),
            ["load", to] => {
                self.load = Some(Load::start(address(to)?));
                Ok(String::new())
            }
            ["progress"] => Ok(self.load.as_ref().map_or(0, Load::done).to_string()),
            ["unload"] => Ok(self.load.take().map(Load::stop).unwrap_or_default()),
            _ => Err(io::Error::from(io::ErrorKind::Unsupported)),
        }
    }

    /// Answers with the local address, the peer's and the greeting.
    fn connect(&mut self, id: &str, to: &str, options: &[&str]) -> io::Result<String> {
        let socket = open(address(to)?, options)?;
        dial(&socket, address(to)?, options)?;
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let stream = TcpStream::from(socket);
        let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
        let mut reader = BufReader::new(stream);
        let greeting = hear(&mut reader)?;
        self.connections.insert(id.to_owned(), reader);
        Ok(format!("{local} {peer} {greeting}"))
    }

    fn say(&mut self, id: &str, text: &str) -> io::Result<String> {
        let connection = self.connection(id)?;
        connection.get_mut().write_all(format!("{text}\n").as_bytes())?;
        hear(connection)
    }

    fn connection(&mut self, id: &str) -> io::Result<&mut BufReader<TcpStream>> {
        self.connections.get_mut(id).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }
}

fn open(to: SocketAddr, options: &[&str]) -> io::Result<Socket> {
    let protocol =
        if options.contains(&"mptcp") { Protocol::from(libc::IPPROTO_MPTCP) } else { Protocol::TCP };
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(protocol))?;
    for option in options {
        match option.split_once('=') {
            Some(("mark", mark)) => socket.set_mark(mark.parse().map_err(invalid)?)?,
            Some(("device", name)) => socket.bind_device(Some(name.as_bytes()))?,
            Some(("bind", from)) => socket.bind(&address(from)?.into())?,
            Some(("unicast-if", name)) => {
                let index = nix::net::if_::if_nametoindex(name)? as i32;
                setsockopt(&socket, UnicastIf, &index.to_be())?;
            }
            _ if *option == "fastopen-connect" => setsockopt(&socket, sockopt::TcpFastOpenConnect, &true)?,
            _ => {}
        }
    }
    Ok(socket)
}

fn dial(socket: &Socket, to: SocketAddr, options: &[&str]) -> io::Result<()> {
    if options.contains(&"fastopen-send") {
        return socket.send_to_with_flags(b"hello\n", &to.into(), MSG_FASTOPEN).map(drop);
    }
    socket.connect_timeout(&to.into(), PATIENCE)
}

/// Tries to lead an established connection another way.
fn reroute(stream: &TcpStream, option: &str) -> io::Result<()> {
    let socket = SockRef::from(stream);
    match option.split_once('=') {
        Some(("mark", mark)) => socket.set_mark(mark.parse().map_err(invalid)?),
        Some(("device", name)) => socket.bind_device(Some(name.as_bytes())),
        Some(("index", name)) => {
            let index = nix::net::if_::if_nametoindex(name)? as i32;
            Ok(setsockopt(stream, BindToIfindex, &index)?)
        }
        _ => Err(io::Error::from(io::ErrorKind::Unsupported)),
    }
}

/// One line; the end of the stream is an error of its own.
fn hear(reader: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    Ok(line.trim_end().to_owned())
}

/// Greets every connection with "app PEER" and sends every line back behind "app ", until "bye". A line of an option of
/// [`reroute`] is tried first, and answered by what came of it.
fn listen(at: &str) -> io::Result<String> {
    let listener = TcpListener::bind(address(at)?)?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    Ok(String::new())
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    let peer = stream.peer_addr()?;
    stream.write_all(format!("app {peer}\n").as_bytes())?;
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?;
        let said = match reroute(&stream, &line) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => line.clone(),
            Err(error) => name_of(&error),
            Ok(()) => "rerouted".to_owned(),
        };
        stream.write_all(format!("app {said}\n").as_bytes())?;
        if line == "bye" {
            break;
        }
    }
    Ok(())
}

/// Sends one UDP packet and answers with who replied what.
fn ask(to: &str, text: &str, options: &[&str]) -> io::Result<String> {
    let to = address(to)?;
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None)?;
    for option in options {
        if let Some(name) = option.strip_prefix("device=") {
            socket.bind_device(Some(name.as_bytes()))?;
        }
    }
    let patience = if options.contains(&"impatient") { Duration::from_millis(500) } else { PATIENCE };
    socket.set_read_timeout(Some(patience))?;
    let mut buffer = [0; 2048];
    if options.contains(&"connected") {
        socket.connect(&to.into())?;
        let socket = UdpSocket::from(socket);
        socket.send(text.as_bytes())?;
        let length = patiently(|| socket.recv(&mut buffer))?;
        let from = socket.peer_addr()?;
        return Ok(format!("{from} {}", String::from_utf8_lossy(&buffer[..length])));
    }
    socket.send_to(text.as_bytes(), &to.into())?;
    let socket = UdpSocket::from(socket);
    let (length, from) = patiently(|| socket.recv_from(&mut buffer))?;
    Ok(format!("{from} {}", String::from_utf8_lossy(&buffer[..length])))
}

/// A call with a timeout is interrupted also when the machine stops and continues the process.
fn patiently<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Replies "app PEER TEXT" to every packet.
fn answer(at: &str) -> io::Result<String> {
    let socket = UdpSocket::bind(address(at)?)?;
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]);
            let _ = socket.send_to(format!("app {from} {text}").as_bytes(), from);
        }
    });
    Ok(String::new())
}

/// Loops of short connections, each of which must work from end to end.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    errors: Arc<Mutex<HashMap<String, u64>>>,
    loops: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(to: SocketAddr) -> Self {
        let (stop, done, errors) =
            <(Arc<AtomicBool>, Arc<AtomicU64>, Arc<Mutex<HashMap<String, u64>>>)>::default();
        let run = || {
            let (stop, done, errors) = (Arc::clone(&stop), Arc::clone(&done), Arc::clone(&errors));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Err(error) = exchange(to) {
                        *errors.lock().expect("no panic").entry(name_of(&error)).or_default() += 1;
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let loops = (0..LOOPS).map(|_| run()).collect();
        Self { stop, done, errors, loops }
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    fn stop(self) -> String {
        self.stop.store(true, Ordering::Relaxed);
        for one in self.loops {
            one.join().expect("no panic");
        }
        format!("{} {:?}", self.done.load(Ordering::Relaxed), self.errors.lock().expect("no panic"))
    }
}

/// Connects, reads the greeting, sends a line, reads its echo. The other end closes first at "bye", so that no TIME_WAIT
/// state of ours uses the ports up.
fn exchange(to: SocketAddr) -> io::Result<()> {
    let started = Instant::now();
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    hear(&mut reader)?;
    reader.get_mut().write_all(b"bye\n")?;
    hear(&mut reader)?;
    let slow = started.elapsed() > PATIENCE;
    reader.read_to_end(&mut Vec::new())?;
    if slow { Err(io::Error::from(io::ErrorKind::TimedOut)) } else { Ok(()) }
}

fn address(text: &str) -> io::Result<SocketAddr> {
    text.parse().map_err(invalid)
}

fn invalid<E>(_: E) -> io::Error {
    io::Error::from(io::ErrorKind::InvalidInput)
}

fn name_of(error: &io::Error) -> String {
    error
        .raw_os_error()
        .map_or_else(|| format!("{:?}", error.kind()), |errno| format!("{:?}", Errno::from_raw(errno)))
}
