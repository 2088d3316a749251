//! The only `unsafe` code of this crate: the calls of libvirt that `virt` lacks or gets wrong.
//!
//! The interface to the rest of the module is safe. Three rules hold it together: callbacks only
//! copy what they are given and send it on a channel, since they run on the event loop's thread and
//! would block everybody; what a callback points to is freed by libvirt's own free callback; what libvirt allocated is freed by libvirt.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use tokio::sync::mpsc::UnboundedSender;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error as VirtError;
use virt::sys;

use super::event::{CloseReason, DomainEvent, DomainId, Event, EventKind, Lifecycle, Tray};
use super::job::{JobKind, JobStats, Value};
use crate::clock::Stamp;

/// Where the events of one connection go: to everybody who asked.
pub(super) struct Hub {
    uri: String,
    subscribers: Mutex<Vec<UnboundedSender<Event>>>,
}

impl Hub {
    pub(super) fn new(uri: &str) -> Arc<Self> {
        Arc::new(Self { uri: uri.to_owned(), subscribers: Mutex::default() })
    }

    pub(super) fn add(&self, subscriber: UnboundedSender<Event>) {
        // A sender list is valid at every step, so a poisoned lock loses nothing.
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner).push(subscriber);
    }

    fn send(&self, event: &Event) {
        self.subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|subscriber| subscriber.send(event.clone()).is_ok());
    }
}

/// Starts libvirt's event loop in a thread of its own, once per process. It must be registered
/// before the first connection is opened (`virEventRegisterDefaultImpl`), and it runs until the
/// process ends: connections opened later need it too.
pub(super) fn start_event_loop() -> Result<(), VirtError> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        // By default libvirt prints every error to stderr, also those that are handled.
        virt::error::clear_error_callback();
        virt::event::event_register_default_impl().map_err(|error| error.to_string())?;
        std::thread::Builder::new()
            .name("libvirt-events".into())
            .spawn(|| {
                loop {
                    if let Err(error) = virt::event::event_run_default_impl() {
                        tracing::error!(%error, "libvirt's event loop");
                        // poll(2) itself failed; do not spin on it.
                        std::thread::sleep(std::time::Duration::from_secs(1));
                    }
                }
            })
            .map_err(|error| error.to_string())?;
        Ok(())
    });
    match started {
        Ok(()) => Ok(()),
        Err(message) => {
            tracing::error!(message, "libvirt's event loop cannot be started");
            Err(VirtError::last_error())
        }
    }
}

/// The callbacks registered on one connection; they are taken back when this is dropped.
pub(super) struct Registration {
    connect: Connect,
    ids: Vec<c_int>,
    close: bool,
}

// The events asked for; only the first is needed, drivers other than QEMU's lack some.
const EVENTS: [u32; 7] = [
    sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE,
    sys::VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
    sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
    sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED,
    sys::VIR_DOMAIN_EVENT_ID_TRAY_CHANGE,
    sys::VIR_DOMAIN_EVENT_ID_JOB_COMPLETED,
    sys::VIR_DOMAIN_EVENT_ID_MIGRATION_ITERATION,
];

/// Registers for all domains' events and for the loss of the connection.
pub(super) fn register(connect: &Connect, hub: &Arc<Hub>) -> Result<Registration, VirtError> {
    let mut registration = Registration { connect: connect.clone(), ids: Vec::new(), close: false };
    for event in EVENTS {
        // SAFETY: every callback below has the signature that libvirt documents for its event and is
        // called with it; libvirt takes them all under one generic type (`VIR_DOMAIN_EVENT_CALLBACK`).
        // A function pointer may be cast to another function pointer type as long as it is called
        // through the right one.
        let callback: sys::virConnectDomainEventGenericCallback = unsafe {
            Some(match event {
                sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE => std::mem::transmute::<
                    unsafe extern "C" fn(
                        sys::virConnectPtr,
                        sys::virDomainPtr,
                        c_int,
                        c_int,
                        *mut c_void,
                    ) -> c_int,
                    Generic,
                >(on_lifecycle),
                sys::VIR_DOMAIN_EVENT_ID_DEVICE_ADDED => {
                    std::mem::transmute::<OnDevice, Generic>(on_device_added)
                }
                sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED => {
                    std::mem::transmute::<OnDevice, Generic>(on_device_removed)
                }
                sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED => {
                    std::mem::transmute::<OnDevice, Generic>(on_device_removal_failed)
                }
                sys::VIR_DOMAIN_EVENT_ID_TRAY_CHANGE => {
                    std::mem::transmute::<OnTray, Generic>(on_tray_change)
                }
                sys::VIR_DOMAIN_EVENT_ID_JOB_COMPLETED => {
                    std::mem::transmute::<OnJob, Generic>(on_job_completed)
                }
                _ => std::mem::transmute::<OnIteration, Generic>(on_iteration),
            })
        };
        let opaque = opaque_of(hub);
        // SAFETY: the connection is alive; a NULL domain means all; `opaque` is a box that `free_hub`
        // frees, called by libvirt exactly once after a successful registration.
        let id = unsafe {
            sys::virConnectDomainEventRegisterAny(
                connect.as_ptr(),
                std::ptr::null_mut(),
                raw_flags(event),
                callback,
                opaque,
                Some(free_hub),
            )
        };
        if id >= 0 {
            registration.ids.push(id);
            continue;
        }
        let error = VirtError::last_error();
        // SAFETY: the registration failed, so libvirt did not take the box.
        unsafe { free_hub(opaque) };
        if event == sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE {
            return Err(error);
        }
        tracing::debug!(event, %error, "this driver does not tell of an event");
    }
    let opaque = opaque_of(hub);
    // SAFETY: as above; one close callback a connection, and this is the only place that sets it.
    let set = unsafe {
        sys::virConnectRegisterCloseCallback(connect.as_ptr(), Some(on_close), opaque, Some(free_hub))
    };
    if set == 0 {
        registration.close = true;
    } else {
        tracing::debug!(error = %VirtError::last_error(), "this driver does not tell of a lost connection");
        // SAFETY: the registration failed, so libvirt did not take the box.
        unsafe { free_hub(opaque) };
    }
    Ok(registration)
}

impl Drop for Registration {
    fn drop(&mut self) {
        for id in &self.ids {
            // SAFETY: the connection is alive and the id is one that it gave out. A failure means
            // that the connection is gone, and the callback with it.
            unsafe { sys::virConnectDomainEventDeregisterAny(self.connect.as_ptr(), *id) };
        }
        if self.close {
            // SAFETY: the same function was registered on this connection.
            unsafe { sys::virConnectUnregisterCloseCallback(self.connect.as_ptr(), Some(on_close)) };
        }
    }
}

type Generic = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);
type OnDevice = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *const c_char, *mut c_void);
type OnTray = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *const c_char, c_int, *mut c_void);
type OnJob = unsafe extern "C" fn(
    sys::virConnectPtr,
    sys::virDomainPtr,
    sys::virTypedParameterPtr,
    c_int,
    *mut c_void,
);
type OnIteration = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, *mut c_void);

/// What a callback points to: a weak reference, since drivers without close callbacks accept one all
/// the same and neither call nor free it (`virConnectRegisterCloseCallback` of libvirt 9 to 11). The
/// box is lost then; the hub, and with it the subscribers' channels, is not.
fn opaque_of(hub: &Arc<Hub>) -> *mut c_void {
    Box::into_raw(Box::new(Arc::downgrade(hub))).cast()
}

/// # Safety
/// `opaque` was made by [`opaque_of`] and nobody else frees it.
unsafe extern "C" fn free_hub(opaque: *mut c_void) {
    // SAFETY: by the contract above.
    drop(unsafe { Box::from_raw(opaque.cast::<Weak<Hub>>()) });
}

/// The hub, unless its connection has just been dropped.
///
/// # Safety
/// `opaque` was made by [`opaque_of`] and is not freed.
unsafe fn hub_of(opaque: *mut c_void) -> Option<Arc<Hub>> {
    // SAFETY: by the contract above.
    unsafe { &*opaque.cast::<Weak<Hub>>() }.upgrade()
}

/// Sends one event of `domain`. A panic must not unwind into libvirt: nothing here can panic but an
/// allocation failure, which aborts.
///
/// # Safety
/// `domain` is a domain that lives for the call, `opaque` the hub of the registration.
unsafe fn send(domain: sys::virDomainPtr, opaque: *mut c_void, kind: EventKind) {
    let received = Stamp::now();
    let mut uuid = [0; sys::VIR_UUID_STRING_BUFLEN as usize];
    // SAFETY: libvirt keeps the domain and its name alive during the callback; the buffer has the
    // size that `virDomainGetUUIDString` asks for; both only read the object.
    let domain = unsafe {
        if sys::virDomainGetUUIDString(domain, uuid.as_mut_ptr()) != 0 {
            return;
        }
        DomainId { name: text(sys::virDomainGetName(domain)), uuid: text(uuid.as_ptr()) }
    };
    // SAFETY: libvirt keeps `opaque` until it calls `free_hub`.
    if let Some(hub) = unsafe { hub_of(opaque) } {
        hub.send(&Event::Domain(DomainEvent { domain, received, kind }));
    }
}

/// # Safety
/// `text` is NULL or ends in NUL.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: by the contract above.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

unsafe extern "C" fn on_lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: libvirt calls with what was registered.
    unsafe { send(domain, opaque, EventKind::Lifecycle(Lifecycle::from_raw(event, detail))) };
    0
}

unsafe extern "C" fn on_device_added(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    alias: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt calls with what was registered and a valid alias.
    unsafe { send(domain, opaque, EventKind::DeviceAdded { alias: text(alias) }) };
}

unsafe extern "C" fn on_device_removed(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    alias: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: as `on_device_added`.
    unsafe { send(domain, opaque, EventKind::DeviceRemoved { alias: text(alias) }) };
}

unsafe extern "C" fn on_device_removal_failed(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    alias: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: as `on_device_added`.
    unsafe { send(domain, opaque, EventKind::DeviceRemovalFailed { alias: text(alias) }) };
}

unsafe extern "C" fn on_tray_change(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    alias: *const c_char,
    reason: c_int,
    opaque: *mut c_void,
) {
    let tray =
        if reason == raw_flags(sys::VIR_DOMAIN_EVENT_TRAY_CHANGE_OPEN) { Tray::Opened } else { Tray::Closed };
    // SAFETY: as `on_device_added`.
    unsafe { send(domain, opaque, EventKind::TrayChange { alias: text(alias), tray }) };
}

unsafe extern "C" fn on_job_completed(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    params: sys::virTypedParameterPtr,
    count: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt passes an array of `count` parameters that it owns.
    unsafe {
        let stats = JobStats::from_params(JobKind::Completed, &values(params, count));
        send(domain, opaque, EventKind::JobCompleted(Box::new(stats)));
    }
}

unsafe extern "C" fn on_iteration(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    iteration: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt calls with what was registered.
    unsafe { send(domain, opaque, EventKind::MigrationIteration(iteration)) };
}

unsafe extern "C" fn on_close(_: sys::virConnectPtr, reason: c_int, opaque: *mut c_void) {
    // SAFETY: libvirt keeps `opaque` until it calls `free_hub`.
    if let Some(hub) = unsafe { hub_of(opaque) } {
        let reason = CloseReason::from_raw(reason);
        hub.send(&Event::Closed { uri: hub.uri.clone(), reason, received: Stamp::now() });
    }
}

/// # Safety
/// `params` is NULL or an array of `count` parameters.
unsafe fn values(params: sys::virTypedParameterPtr, count: c_int) -> Vec<(String, Value)> {
    let count = usize::try_from(count).unwrap_or(0);
    if params.is_null() {
        return Vec::new();
    }
    // SAFETY: by the contract above.
    let params = unsafe { std::slice::from_raw_parts(params, count) };
    params
        .iter()
        .filter_map(|param| {
            // SAFETY: libvirt fills the member of the union that `type_` names, and ends names and
            // strings in NUL.
            unsafe {
                let value = match u32::try_from(param.type_).ok()? {
                    sys::VIR_TYPED_PARAM_INT => Value::Signed(param.value.i.into()),
                    sys::VIR_TYPED_PARAM_UINT => Value::Unsigned(param.value.ui.into()),
                    sys::VIR_TYPED_PARAM_LLONG => Value::Signed(param.value.l),
                    sys::VIR_TYPED_PARAM_ULLONG => Value::Unsigned(param.value.ul),
                    sys::VIR_TYPED_PARAM_DOUBLE => Value::Double(param.value.d),
                    sys::VIR_TYPED_PARAM_BOOLEAN => Value::Boolean(param.value.b != 0),
                    sys::VIR_TYPED_PARAM_STRING => Value::Text(text(param.value.s)),
                    _ => return None,
                };
                Some((text(param.field.as_ptr()), value))
            }
        })
        .collect()
}

/// Statistics of the running job, or of the last one that ended.
pub(super) fn job_stats(domain: &Domain, flags: u32) -> Result<JobStats, VirtError> {
    let (mut kind, mut params, mut count) = (0, std::ptr::null_mut(), 0);
    // SAFETY: the domain is alive; libvirt allocates the array, and only on success. Without a job
    // the array is NULL and `count` 0, which both `values` and `virTypedParamsFree` take.
    unsafe {
        if sys::virDomainGetJobStats(domain.as_ptr(), &raw mut kind, &raw mut params, &raw mut count, flags)
            != 0
        {
            return Err(VirtError::last_error());
        }
        let stats = JobStats::from_params(JobKind::from_raw(kind), &values(params, count));
        sys::virTypedParamsFree(params, count);
        Ok(stats)
    }
}

/// `virDomainGetState`: state and reason.
pub(super) fn state(domain: &Domain) -> Result<(u32, u32), VirtError> {
    let (mut state, mut reason) = (0, 0);
    // SAFETY: the domain is alive and both results are ours.
    if unsafe { sys::virDomainGetState(domain.as_ptr(), &raw mut state, &raw mut reason, 0) } != 0 {
        return Err(VirtError::last_error());
    }
    Ok((u32::try_from(state).unwrap_or(0), u32::try_from(reason).unwrap_or(0)))
}

/// `virDomainAbortJob`.
pub(super) fn abort_job(domain: &Domain) -> Result<(), VirtError> {
    // SAFETY: the domain is alive.
    check(unsafe { sys::virDomainAbortJob(domain.as_ptr()) })
}

/// `virDomainMigrateGetMaxDowntime`, in milliseconds.
pub(super) fn max_downtime(domain: &Domain) -> Result<u64, VirtError> {
    let mut downtime = 0;
    // SAFETY: the domain is alive and the result is ours.
    check(unsafe { sys::virDomainMigrateGetMaxDowntime(domain.as_ptr(), &raw mut downtime, 0) })?;
    Ok(downtime)
}

/// `virDomainDetachDeviceAlias`.
pub(super) fn detach_alias(domain: &Domain, alias: &CStr, flags: u32) -> Result<(), VirtError> {
    // SAFETY: the domain is alive and the alias ends in NUL.
    check(unsafe { sys::virDomainDetachDeviceAlias(domain.as_ptr(), alias.as_ptr(), flags as c_uint) })
}

fn check(result: c_int) -> Result<(), VirtError> {
    if result == 0 { Ok(()) } else { Err(VirtError::last_error()) }
}

/// libvirt's constants are unsigned here and signed there; all of them are small.
fn raw_flags(value: u32) -> c_int {
    c_int::try_from(value).unwrap_or(c_int::MAX)
}
