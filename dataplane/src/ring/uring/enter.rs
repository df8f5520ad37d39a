//! The system call of the io_uring engine, with a registered ring descriptor, a timeout and a minimum wait, and the C
//! structures that entries point to.
//!
//! It counts its calls, so that tests and benches can tell how many a message costs.
#![allow(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::ptr;
use std::time::Duration;

use io_uring::{EnterFlags, IoUring};

/// IORING_REGISTER_RING_FDS of the kernel's interface.
const REGISTER_RING_FDS: libc::c_uint = 20;
/// IORING_UNREGISTER_RING_FDS of the kernel's interface.
const UNREGISTER_RING_FDS: libc::c_uint = 21;

/// `struct io_uring_rsrc_update` of the kernel's interface.
#[repr(C)]
struct ResourceUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// `struct io_uring_getevents_arg` of the kernel's interface.
#[repr(C)]
struct GetEventsArg {
    sigmask: u64,
    sigmask_bytes: u32,
    min_wait_micros: u32,
    timeout: u64,
}

/// `struct __kernel_timespec` of the kernel's interface.
#[repr(C)]
struct KernelTimespec {
    secs: i64,
    nanos: i64,
}

/// Enters the kernel for one ring.
pub(super) struct Enter {
    /// The registered index, or the descriptor where registering failed.
    fd: i32,
    registered: bool,
    count: u64,
}

impl Enter {
    /// Registers the ring's descriptor, which spares a look-up in every call. Only the thread that made the ring may.
    pub(super) fn new(ring: &IoUring) -> io::Result<Self> {
        let mut update = ResourceUpdate {
            offset: u32::MAX,
            reserved: 0,
            data: ring.as_raw_fd() as u64,
        };
        let registered = register(ring, REGISTER_RING_FDS, &mut update).is_ok();
        let fd = if registered {
            i32::try_from(update.offset).map_err(|_| io::ErrorKind::InvalidData)?
        } else {
            ring.as_raw_fd()
        };
        Ok(Self {
            fd,
            registered,
            count: 0,
        })
    }

    /// How often the kernel was entered.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Submits `submit` entries, then waits for `want` completions (after `min_wait_micros` for one), at most `timeout`.
    ///
    /// A timeout, a signal and a kernel short of memory are not errors: the caller looks at the queues.
    pub(super) fn enter(
        &mut self,
        ring: &IoUring,
        submit: usize,
        want: u32,
        timeout: Option<Duration>,
        min_wait_micros: u32,
    ) -> io::Result<()> {
        let timespec = timeout.map(|timeout| KernelTimespec {
            secs: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            nanos: i64::from(timeout.subsec_nanos()),
        });
        let arg = GetEventsArg {
            sigmask: 0,
            sigmask_bytes: 0,
            min_wait_micros,
            timeout: timespec
                .as_ref()
                .map_or(0, |timespec| ptr::from_ref(timespec) as u64),
        };
        // GETEVENTS always: deferred completions are posted only by an enter that carries it.
        let mut flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        flags.set(EnterFlags::REGISTERED_RING, self.registered);
        self.count += 1;
        debug_assert!(self.registered || self.fd == ring.as_raw_fd());
        // SAFETY: the ring lives (borrowed); `arg` and the timespec it points to live across the call; the entries that
        // are submitted were pushed under the contract of `SubmissionQueue::push`.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                libc::c_long::from(self.fd),
                submit as libc::c_long,
                libc::c_long::from(want),
                libc::c_long::from(flags.bits()),
                ptr::from_ref(&arg),
                size_of::<GetEventsArg>(),
            )
        };
        if result >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
            _ => Err(error),
        }
    }

    /// Gives the registration back; without it the thread would keep the ring open.
    pub(super) fn unregister(&mut self, ring: &IoUring) {
        if self.registered {
            let mut update = ResourceUpdate {
                offset: self.fd.cast_unsigned(),
                reserved: 0,
                data: 0,
            };
            let _ = register(ring, UNREGISTER_RING_FDS, &mut update);
            self.registered = false;
            self.fd = ring.as_raw_fd();
        }
    }
}

fn register(ring: &IoUring, opcode: libc::c_uint, update: &mut ResourceUpdate) -> io::Result<()> {
    // SAFETY: `update` is one structure of the kind that both opcodes read and write, and lives across the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            libc::c_long::from(ring.as_raw_fd()),
            libc::c_long::from(opcode),
            ptr::from_mut(update),
            1 as libc::c_long,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A message header whose vectors lie elsewhere.
pub(super) struct MessageHeader(libc::msghdr);

impl MessageHeader {
    pub(super) fn as_ptr(&self) -> *const libc::msghdr {
        &raw const self.0
    }
}

/// A header for these vectors, which must stay put as long as it is used.
pub(super) fn message_header(vectors: &mut [libc::iovec]) -> MessageHeader {
    // SAFETY: all zeroes is a valid header: null pointers with zero lengths.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = vectors.as_mut_ptr();
    header.msg_iovlen = vectors.len();
    MessageHeader(header)
}

/// A TCP address in the kernel's form.
#[derive(Clone, Copy)]
pub(super) enum SocketAddress {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl SocketAddress {
    pub(super) fn new(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(address) => Self::V4(libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(address.ip().octets()),
                },
                sin_zero: [0; 8],
            }),
            SocketAddr::V6(address) => Self::V6(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo().to_be(),
                sin6_addr: libc::in6_addr {
                    s6_addr: address.ip().octets(),
                },
                sin6_scope_id: address.scope_id(),
            }),
        }
    }

    pub(super) fn as_ptr(&self) -> *const libc::sockaddr {
        match self {
            Self::V4(address) => ptr::from_ref(address).cast(),
            Self::V6(address) => ptr::from_ref(address).cast(),
        }
    }

    pub(super) fn len(&self) -> libc::socklen_t {
        let bytes = match self {
            Self::V4(address) => size_of_val(address),
            Self::V6(address) => size_of_val(address),
        };
        libc::socklen_t::try_from(bytes).unwrap_or(0)
    }
}
