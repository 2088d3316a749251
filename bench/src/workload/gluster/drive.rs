//! Doing it: servers and client over an executor.

use std::net::IpAddr;
use std::time::Duration;

use super::Volume;
use super::hook::{self, Client};
use super::script;
use super::state::{ClientState, Difference, Heal, StateError};
use crate::exec::{Exec, ExecError, quote};

/// A volume that is not as it must be.
#[derive(Debug, thiserror::Error)]
pub enum GlusterError {
    /// A command failed.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// What a machine printed cannot be read.
    #[error("{host}: {source}")]
    State {
        /// The machine.
        host: String,
        /// What is missing.
        source: StateError,
    },
    /// The client did not attach, or through another server than it should.
    #[error("{host}: the volume is attached through {found}, not through {wanted}: {reason}")]
    Attach {
        /// The client.
        host: String,
        /// The server it should have.
        wanted: IpAddr,
        /// What it has: an address, or `nothing`.
        found: String,
        /// What its script says.
        reason: String,
    },
    /// The bricks did not become the same in time.
    #[error("{host}: still {heal:?} after {} s: one server missed writes; look at the servers' logs", deadline.as_secs())]
    Unhealed {
        /// The server that says so.
        host: String,
        /// What waits.
        heal: Heal,
        /// How long it was waited.
        deadline: Duration,
    },
    /// The bricks hold different files.
    #[error("the bricks differ in {} entries, first {first}", difference.first.len() + difference.second.len())]
    Differ {
        /// All differences.
        difference: Difference,
        /// One of them.
        first: String,
    },
}

/// Commands of a server, on an emulated machine under load.
const SHORT: Duration = Duration::from_secs(90);

/// Makes an empty brick; stops a server that still runs.
///
/// # Errors
/// The command's failure.
pub async fn prepare_server(server: &impl Exec, volume: &Volume) -> Result<(), GlusterError> {
    Ok(server.demand("prepare the brick", &script::prepare(volume), SHORT).await.map(drop)?)
}

/// Starts server `own` (0 or 1 in brick order); returns when it listens.
///
/// # Errors
/// The command's failure, with the end of the server's log.
pub async fn start_server(server: &impl Exec, volume: &Volume, own: usize) -> Result<(), GlusterError> {
    Ok(server.demand("start the GlusterFS server", &script::start(volume, own), SHORT).await.map(drop)?)
}

/// Returns when the server has its peer's brick. Before that a client's writes would be on one brick only.
///
/// # Errors
/// The command's failure, with the end of the server's log.
pub async fn await_peer(server: &impl Exec) -> Result<(), GlusterError> {
    Ok(server.demand("wait for the other server", &script::await_peer(), SHORT).await.map(drop)?)
}

/// Stops the server.
///
/// # Errors
/// The command's failure.
pub async fn stop_server(server: &impl Exec) -> Result<(), GlusterError> {
    Ok(server.demand("stop the GlusterFS server", &script::stop(), SHORT).await.map(drop)?)
}

/// Writes the hook's script into the guest and runs it for the first time.
///
/// # Errors
/// As for [`remount`].
pub async fn attach(
    guest: &impl Exec,
    volume: &Volume,
    client: &Client,
    wanted: IpAddr,
) -> Result<ClientState, GlusterError> {
    let text = hook::hook(volume, client);
    let path = quote(&client.script);
    let script = format!(
        "set -e
mkdir -p \"$(dirname {path})\"
cat >{path}.new <<'END-OF-SCRIPT'
{text}END-OF-SCRIPT
chmod 755 {path}.new
mv {path}.new {path}
"
    );
    guest.demand("write the client's hook", &script, SHORT).await?;
    remount(guest, client, wanted).await
}

/// Runs the hook's script by hand, as `ffs` does on a change, and demands that the volume is then attached
/// through `wanted`.
///
/// # Errors
/// [`GlusterError::Attach`], or the command's failure.
pub async fn remount(
    guest: &impl Exec,
    client: &Client,
    wanted: IpAddr,
) -> Result<ClientState, GlusterError> {
    let deadline = Duration::from_secs(u64::from(client.patience) * 2 + 60);
    let run = guest.demand("attach the volume", &quote(&client.script), deadline).await;
    // The state is whole even when the script failed, and says more than its status.
    let state = match run {
        Ok(_) => client_state(guest).await?,
        Err(failed @ ExecError::Failed { .. }) => client_state(guest).await.map_err(|_| failed)?,
        Err(error) => return Err(error.into()),
    };
    attached_through(guest.name(), state, wanted)
}

/// How the client's last attach went, whoever ran it.
///
/// # Errors
/// The command's failure, or [`GlusterError::State`].
pub async fn client_state(guest: &impl Exec) -> Result<ClientState, GlusterError> {
    let script = format!("cat {}/state", hook::RUN);
    let text = guest.demand("read the client's state", &script, SHORT).await?;
    ClientState::parse(&text).map_err(|source| GlusterError::State { host: guest.name().into(), source })
}

/// Waits until the client is attached through `wanted`: what recontextualization leads to, without any
/// help from here. The guest itself looks every 0.1 s.
///
/// # Errors
/// [`GlusterError::Attach`] with the last state when `deadline` has passed.
pub async fn await_attached(
    guest: &impl Exec,
    wanted: IpAddr,
    deadline: Duration,
) -> Result<ClientState, GlusterError> {
    let script = format!(
        "end=$(($(cut -d. -f1 /proc/uptime) + {seconds}))
until grep -qsx 'state=attached' {run}/state && grep -qsx 'address={wanted}' {run}/state; do
    test \"$(cut -d. -f1 /proc/uptime)\" -lt \"$end\" || break
    sleep 0.1
done
cat {run}/state
",
        seconds = deadline.as_secs().max(1),
        run = hook::RUN,
    );
    let text = guest.demand("wait for the client's hook", &script, deadline + SHORT).await?;
    let failed = |source| GlusterError::State { host: guest.name().into(), source };
    attached_through(guest.name(), ClientState::parse(&text).map_err(failed)?, wanted)
}

fn attached_through(host: &str, state: ClientState, wanted: IpAddr) -> Result<ClientState, GlusterError> {
    if state.attached && state.address == Some(wanted) {
        return Ok(state);
    }
    let found = state.address.filter(|_| state.attached);
    Err(GlusterError::Attach {
        host: host.into(),
        wanted,
        found: found.map_or_else(|| "nothing".into(), |address| address.to_string()),
        reason: state.reason,
    })
}

/// Unmounts the volume in the guest.
///
/// # Errors
/// The command's failure.
pub async fn unmount(guest: &impl Exec, client: &Client) -> Result<(), GlusterError> {
    Ok(guest.demand("unmount the volume", &hook::detach(client), SHORT).await.map(drop)?)
}

/// Writes a server's address to the client's context file: for machines where no `ffs` shows it.
///
/// # Errors
/// The command's failure.
pub async fn write_address(guest: &impl Exec, client: &Client, server: IpAddr) -> Result<(), GlusterError> {
    let path = quote(&client.context);
    let script =
        format!("mkdir -p \"$(dirname {path})\" && echo {server} >{path}.new && mv {path}.new {path}");
    Ok(guest.demand("write the server's address", &script, SHORT).await.map(drop)?)
}

/// What waits for healing in one brick, now.
///
/// # Errors
/// The command's failure, or [`GlusterError::State`].
pub async fn heal(server: &impl Exec, volume: &Volume) -> Result<Heal, GlusterError> {
    let text = server.demand("read the state of healing", &script::heal(volume), SHORT).await?;
    Heal::parse(&text).map_err(|source| GlusterError::State { host: server.name().into(), source })
}

/// Waits until nothing waits for healing in the brick. AFR takes its marks away about a second after the last write.
///
/// # Errors
/// [`GlusterError::Unhealed`] when `deadline` has passed.
pub async fn await_clean(
    server: &impl Exec,
    volume: &Volume,
    deadline: Duration,
) -> Result<(), GlusterError> {
    let end = tokio::time::Instant::now() + deadline;
    loop {
        let heal = heal(server, volume).await?;
        if heal.clean() {
            return Ok(());
        }
        if tokio::time::Instant::now() >= end {
            return Err(GlusterError::Unhealed { host: server.name().into(), heal, deadline });
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Demands that both bricks hold the same files; gives their number of entries.
///
/// # Errors
/// [`GlusterError::Differ`], or the command's failure.
pub async fn verify_bricks(
    first: &impl Exec,
    second: &impl Exec,
    volume: &Volume,
) -> Result<usize, GlusterError> {
    let list = script::list(volume);
    let (a, b) = tokio::try_join!(
        first.demand("list the brick", &list, SHORT),
        second.demand("list the brick", &list, SHORT)
    )?;
    let difference = Difference::between(&a, &b);
    if difference.is_none() {
        return Ok(difference.same);
    }
    let line = difference.first.first().or(difference.second.first()).cloned().unwrap_or_default();
    Err(GlusterError::Differ { difference, first: line })
}
