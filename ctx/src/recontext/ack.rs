//! The guest's answer to a run: whether its data is shown there, or why it was refused.
//!
//! A domain whose XML has a virtio-serial channel named [`PORT`] answers over the channel's socket; on
//! Xen, a domain that has written below [`XENSTORE`] answers there. Any other domain cannot answer, and is
//! not waited for. Xenstore is asked over xenstored's socket: a watch tells of the answer when it is there,
//! where the `xenstore-read` program would have to be started again and again.
//!
//! What comes from a guest is hostile: lines are limited before they are parsed, and so is all that is
//! read for one run. It can only speak about itself: the host decides by the channel whose answer it is.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ctx_format::ClassName;
use ctx_format::ack::{Ack, Hook, MAX_ACK, NO_CLASS, PORT, QUESTION, Verdict, XENSTORE};
use ctx_format::xenstore::{Client, Request, SOCKET};
use roxmltree::Document;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

use super::record::{Outcome, Phase, PhaseTime, Record};
use crate::clock::monotonic_ns;

/// What is read of one guest for one run, in bytes: it has a few lines to say.
const MAX_TALK: u64 = 1 << 20;
/// A channel that cannot be connected to, or was closed, is tried again after so long.
const AGAIN: Duration = Duration::from_millis(200);

/// How the guest of a domain answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Channel {
    /// Over the socket of a virtio-serial channel.
    VirtioSerial(PathBuf),
    /// In xenstore.
    Xenstore {
        /// The domain's number there.
        domain: u32,
        /// The socket of xenstored.
        socket: PathBuf,
    },
}

impl Channel {
    /// The channel that a running domain has, by its XML. On Xen it is not known yet whether the guest
    /// uses it ([`Channel::is_used`]).
    pub fn of(xml: &str) -> Option<Self> {
        let document = Document::parse(xml).ok()?;
        let root = document.root_element();
        if root.attribute("type") == Some("xen") {
            let domain = root.attribute("id")?.parse().ok()?;
            return Some(Self::Xenstore { domain, socket: SOCKET.into() });
        }
        let channels = root.descendants().filter(|node| {
            node.has_tag_name("channel") && node.attribute("type") == Some("unix") && {
                let target = node.children().find(|child| child.has_tag_name("target"));
                target.is_some_and(|target| target.attribute("name") == Some(PORT))
            }
        });
        let mut sources = channels
            .flat_map(|channel| channel.children())
            .filter(|child| child.has_tag_name("source") && child.attribute("mode") == Some("bind"));
        sources.find_map(|source| source.attribute("path")).map(|path| Self::VirtioSerial(path.into()))
    }

    /// Whether the guest can be expected to answer. A channel of virtio-serial was made for it; every Xen
    /// domain has a store, and only one that has written there will do so again.
    pub async fn is_used(&self) -> bool {
        let Self::Xenstore { domain, socket } = self else { return true };
        let (socket, node) = (socket.clone(), format!("/local/domain/{domain}/{XENSTORE}"));
        let look = move || Client::connect(&socket, AGAIN)?.call(Request::Read(&node));
        tokio::task::spawn_blocking(look).await.is_ok_and(|read| read.is_ok())
    }

    /// The channel's name in records.
    pub fn name(&self) -> &'static str {
        match self {
            Self::VirtioSerial(_) => "virtio-serial",
            Self::Xenstore { .. } => "xenstore",
        }
    }
}

/// What the guest said to a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acknowledgement {
    /// How it answered: `virtio-serial` or `xenstore`.
    pub channel: String,
    /// Its answer.
    pub answer: Answer,
    /// Why it refused, or what is known when there was no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The hooks that ran for it, failed ones first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Programs in the guest see the data, and hooks are done.
    Applied,
    /// The data was refused; what was there before stays.
    Refused,
    /// None, or not all of it, in time.
    None,
}

/// What is listened for, and what was heard so far.
struct Listener<'a> {
    class: &'a ClassName,
    generation: u64,
    /// What to say when nothing more comes.
    heard: String,
}

impl Listener<'_> {
    /// Takes a line; the answer, if it is the one that is waited for.
    fn hear(&mut self, line: &[u8]) -> Option<(Answer, Option<String>, Vec<Hook>)> {
        let ack = match Ack::parse(line) {
            Ok(ack) => ack,
            Err(error) => {
                self.heard = format!("the guest said something else: {error}");
                return None;
            }
        };
        let why = ack.why.map(String::from);
        if ack.class.is_none() && ack.result == Verdict::Refused {
            // Which image that was, only the guest could know.
            self.heard = format!("the guest refused an image: {}", why.unwrap_or_default());
            return None;
        }
        // A later generation is shown in its place.
        if ack.class.as_ref() != Some(self.class) || ack.generation < Some(self.generation) {
            return None;
        }
        match (ack.result, ack.hooks) {
            (Verdict::Refused, _) if ack.generation == Some(self.generation) => {
                Some((Answer::Refused, Some(why.unwrap_or_else(|| "no reason given".to_owned())), Vec::new()))
            }
            (Verdict::Refused, _) => None,
            (Verdict::Applied, Some(hooks)) => Some((Answer::Applied, None, hooks)),
            (Verdict::Applied, None) => {
                "it is applied, and its hooks still run".clone_into(&mut self.heard);
                None
            }
        }
    }
}

/// Waits until the guest has answered for this class and generation, at most `patience`.
pub async fn listen(
    channel: &Channel,
    class: &ClassName,
    generation: u64,
    patience: Duration,
) -> Acknowledgement {
    let deadline = Instant::now() + patience;
    let mut listener = Listener { class, generation, heard: "the guest said nothing".to_owned() };
    let answer = match channel {
        Channel::VirtioSerial(path) => on_port(path, &mut listener, deadline).await,
        Channel::Xenstore { domain, socket } => in_store(socket, *domain, &mut listener, deadline).await,
    };
    let (answer, why, hooks) = answer.unwrap_or_else(|| {
        (Answer::None, Some(format!("{} (waited {} s)", listener.heard, patience.as_secs())), Vec::new())
    });
    Acknowledgement { channel: channel.name().to_owned(), answer, why, hooks }
}

type Heard = Option<(Answer, Option<String>, Vec<Hook>)>;

async fn on_port(path: &Path, listener: &mut Listener<'_>, deadline: Instant) -> Heard {
    let mut left = MAX_TALK;
    // Once at least, so that what is wrong is said however little time there is.
    loop {
        match timeout_at(deadline, talk(path, listener, &mut left)).await {
            Err(_) => return None,
            Ok(Ok(Some(answer))) => return Some(answer),
            Ok(Ok(None)) if left == 0 => {
                listener.heard = format!("the guest said {MAX_TALK} bytes and not the answer");
                return None;
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => listener.heard = format!("{}: {error}", path.display()),
        }
        // QEMU is about to listen, or somebody else has just closed the socket.
        tokio::time::sleep_until(deadline.min(Instant::now() + AGAIN)).await;
        if Instant::now() >= deadline {
            return None;
        }
    }
}

/// One connection: asks, and listens until the answer comes or the other side closes.
async fn talk(path: &Path, listener: &mut Listener<'_>, left: &mut u64) -> io::Result<Heard> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(QUESTION).await?;
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    while *left > 0 {
        line.clear();
        let most = (MAX_ACK as u64 + 1).min(*left);
        let read = (&mut stream).take(most).read_until(b'\n', &mut line).await?;
        *left = left.saturating_sub(read as u64);
        if read == 0 {
            return Ok(None);
        }
        if let Some(answer) = listener.hear(&line) {
            return Ok(Some(answer));
        }
    }
    Ok(None)
}

async fn in_store(socket: &Path, domain: u32, listener: &mut Listener<'_>, deadline: Instant) -> Heard {
    let (lines, mut received) = tokio::sync::mpsc::channel::<Vec<u8>>(16);
    let patience = deadline.saturating_duration_since(Instant::now());
    let class = listener.class.to_string();
    let opened =
        Client::connect(socket, patience).and_then(|client| Ok((client.stream().try_clone()?, client)));
    let (stream, mut client) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            listener.heard = format!("{}: {error}", socket.display());
            return None;
        }
    };
    // A thread of its own: it ends with the deadline, or when the answer has come and the socket is shut.
    let reader = tokio::task::spawn_blocking(move || -> io::Result<()> {
        let directory = format!("/local/domain/{domain}/{XENSTORE}");
        client.call(Request::Watch(&directory))?;
        loop {
            // The first event comes at once.
            client.event()?;
            for node in [class.as_str(), NO_CLASS] {
                match client.call(Request::Read(&format!("{directory}/{node}"))) {
                    Ok(line) => {
                        if lines.blocking_send(line).is_err() {
                            return Ok(());
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
    });
    while let Ok(Some(line)) = timeout_at(deadline, received.recv()).await {
        if let Some(answer) = listener.hear(&line) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return Some(answer);
        }
    }
    drop(received);
    if let Ok(Ok(Err(error))) = timeout_at(deadline, reader).await {
        listener.heard = format!("xenstore: {error}");
    }
    None
}

/// Phase *acknowledge*, of a run whose device is attached: waits for the guest and writes its answer into
/// the record. The total of the record stays the host's part, up to the attached device.
pub async fn acknowledge(xml: Option<String>, patience: Duration, record: &mut Record) {
    let channel = xml.as_deref().and_then(Channel::of);
    let (Some(channel), Some(class), Some(generation)) = (channel, record.class.clone(), record.generation)
    else {
        return;
    };
    if !channel.is_used().await {
        return;
    }
    let start_ns = monotonic_ns();
    let answer = listen(&channel, &class, generation, patience).await;
    record.phases.push(PhaseTime { name: Phase::Acknowledge, start_ns, end_ns: monotonic_ns() });
    judge(record, answer);
}

/// What an answer makes of a run that was done.
fn judge(record: &mut Record, acknowledgement: Acknowledgement) {
    let why = acknowledgement.why.clone().unwrap_or_default();
    let failed = acknowledgement.hooks.iter().find(|hook| hook.result.as_str() != "ok");
    let degraded = match (acknowledgement.answer, failed) {
        (Answer::Refused, _) => {
            record.outcome = Outcome::Failed;
            record.error = Some(format!("the guest refused it: {why}"));
            None
        }
        (Answer::None, _) => Some(format!("attached, but not acknowledged: {why}")),
        (Answer::Applied, Some(hook)) => {
            Some(format!("applied, but the guest's hook `{}` came to `{}`", hook.name, hook.result))
        }
        (Answer::Applied, None) => None,
    };
    if let Some(why) = degraded {
        record.outcome = Outcome::Degraded;
        record.error = Some(why);
    }
    record.acknowledgement = Some(acknowledgement);
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use ctx_format::ack::Text;

    use super::*;

    fn domain(kind: &str, channel: &str) -> String {
        format!(
            "<domain {kind}><name>g</name><devices><channel type='unix'><source mode='bind' path='/run/agent'/>\
             <target type='virtio' name='org.qemu.guest_agent.0'/></channel>{channel}</devices></domain>"
        )
    }

    #[test]
    fn the_channel_is_found_in_the_domain() {
        let channel = "<channel type='unix'><source mode='bind' path='/run/ack'/>\
                       <target type='virtio' name='org.ctx.ack.0' state='connected'/></channel>";
        let of = |kind: &str, channel: &str| Channel::of(&domain(kind, channel));
        assert_eq!(of("type='kvm'", channel), Some(Channel::VirtioSerial("/run/ack".into())));
        assert_eq!(of("type='kvm'", ""), None);
        assert_eq!(of("type='kvm'", &channel.replace("bind", "connect")), None);
        let Some(Channel::Xenstore { domain: 3, .. }) = of("type='xen' id='3'", "") else { panic!() };
        assert_eq!(of("type='xen'", ""), None);
        assert_eq!(Channel::of("<domain"), None);
    }

    fn hear(lines: &[Ack]) -> Heard {
        let class = "infrastructure".parse().unwrap();
        let mut listener = Listener { class: &class, generation: 7, heard: String::new() };
        lines.iter().find_map(|ack| listener.hear(&ack.to_line()))
    }

    #[test]
    fn only_the_answer_to_this_run_is_taken() {
        let class: ClassName = "infrastructure".parse().unwrap();
        let applied = |generation| Ack::applied(class.clone(), generation);
        let refused = |generation| Ack::refused(Some(class.clone()), generation, "unsigned");
        let done = |generation| applied(generation).with_hooks(Vec::new());
        assert_eq!(hear(&[done(6), applied(7), refused(Some(6)), refused(None)]), None);
        assert_eq!(hear(&[Ack::refused(None, None, "damaged")]), None);
        assert_eq!(hear(&[Ack::applied("service".parse().unwrap(), 7).with_hooks(Vec::new())]), None);
        assert_eq!(hear(&[applied(7), done(7)]), Some((Answer::Applied, None, Vec::new())));
        assert_eq!(hear(&[done(8)]), Some((Answer::Applied, None, Vec::new())));
        let why = Some("unsigned".to_owned());
        assert_eq!(hear(&[refused(Some(7))]), Some((Answer::Refused, why, Vec::new())));
    }

    #[tokio::test]
    async fn a_guest_that_floods_or_says_nothing_costs_little() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            // The first host program is flooded with a line without end, the second one hears nothing.
            let (mut flooded, _) = listener.accept().unwrap();
            while flooded.write_all(&[b'x'; 1 << 12]).is_ok() {}
            let (mut silent, _) = listener.accept().unwrap();
            let _ = silent.read_to_end(&mut Vec::new());
        });
        let channel = Channel::VirtioSerial(path);
        let class = "infrastructure".parse().unwrap();
        let answer = listen(&channel, &class, 7, Duration::from_secs(60)).await;
        assert_eq!(answer.answer, Answer::None);
        assert!(answer.why.unwrap().contains("1048576 bytes"));
        let answer = listen(&channel, &class, 7, Duration::from_millis(100)).await;
        assert!(answer.why.unwrap().starts_with("the guest said nothing"));
        let nobody = Channel::VirtioSerial(dir.path().join("none"));
        let answer = listen(&nobody, &class, 7, Duration::from_millis(100)).await;
        assert!(answer.why.unwrap().contains("No such file"));
    }

    /// One answer of xenstored after another, over its protocol; xenstored itself does not run without Xen.
    #[tokio::test]
    async fn an_answer_in_xenstore_is_found_when_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let ack = Ack::applied("infrastructure".parse().unwrap(), 7).with_hooks(vec![Hook {
            name: Text::lossy("h"),
            result: Text::lossy("exit 1"),
            ms: 2,
        }]);
        let line = ack.to_line();
        let store = std::thread::spawn(move || {
            let message = |kind: u32, id: u32, payload: &[u8]| {
                [
                    [kind, id, 0, u32::try_from(payload.len()).unwrap()]
                        .map(u32::to_ne_bytes)
                        .concat()
                        .as_slice(),
                    payload,
                ]
                .concat()
            };
            let (mut client, _) = listener.accept().unwrap();
            let event = message(15, 0, b"/local/domain/3/data/ctx-ack\0ctx\0");
            let nothing = |id| message(16, id, b"ENOENT\0");
            let before = [message(4, 1, b"OK\0"), event.clone(), nothing(2), nothing(3)];
            let after = [event, message(2, 4, line.trim_ascii_end()), nothing(5)];
            client.write_all(&before.concat()).unwrap();
            client.write_all(&after.concat()).unwrap();
            let mut asked = Vec::new();
            // It ends as soon as it has the answer, and with it what it has not read: that is a reset.
            if let Err(error) = client.read_to_end(&mut asked) {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
            }
            String::from_utf8_lossy(&asked).into_owned()
        });
        let channel = Channel::Xenstore { domain: 3, socket };
        let class = "infrastructure".parse().unwrap();
        let answer = listen(&channel, &class, 7, Duration::from_secs(20)).await;
        assert_eq!((answer.answer, answer.channel.as_str()), (Answer::Applied, "xenstore"));
        assert_eq!(answer.hooks, ack.hooks.unwrap());
        let asked = store.join().unwrap();
        assert!(asked.contains("/local/domain/3/data/ctx-ack\0ctx\0"), "{asked:?}");
        assert!(asked.contains("/local/domain/3/data/ctx-ack/infrastructure\0"), "{asked:?}");
    }
}
