//! The system calls a running machine makes, after everything is open and before its end. Found by tracing whole workloads
//! and by reading what threads, locks and memory of the C library need.

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::{Error, Network};

/// Allowed with any arguments.
#[rustfmt::skip]
const ANY: &[i64] = &[
    // Streams, disks and queues that are open.
    libc::SYS_read, libc::SYS_write, libc::SYS_readv, libc::SYS_writev, libc::SYS_pread64, libc::SYS_pwrite64,
    libc::SYS_preadv, libc::SYS_pwritev, libc::SYS_preadv2, libc::SYS_pwritev2, libc::SYS_lseek, libc::SYS_close,
    libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_sync_file_range, libc::SYS_fallocate, libc::SYS_ftruncate,
    libc::SYS_fstat, libc::SYS_flock,
    libc::SYS_dup, libc::SYS_dup3,
    // Waiting for them.
    libc::SYS_ppoll, libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2, libc::SYS_pipe2,
    // Both ends of what the guest's sockets are joined to, and what wakes the thread for signals.
    libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_shutdown,
    // Requests of a monitor, or of whoever asks for a snapshot, with the open files they bring: the only ones that can
    // still come. To whoever makes copies goes the one that memory is from.
    libc::SYS_accept4, libc::SYS_recvmsg, libc::SYS_sendmsg,
    // Threads and locks; both clones go through the other filter.
    libc::SYS_futex, libc::SYS_clone, libc::SYS_clone3, libc::SYS_set_robust_list, libc::SYS_rseq, libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity, libc::SYS_gettid, libc::SYS_getpid, libc::SYS_exit, libc::SYS_exit_group,
    libc::SYS_restart_syscall, libc::SYS_membarrier,
    // Signals.
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_sigaltstack,
    // Memory; mmap and mprotect with conditions.
    libc::SYS_brk, libc::SYS_madvise, libc::SYS_mremap, libc::SYS_munmap,
    // Time and chance.
    libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_clock_nanosleep, libc::SYS_nanosleep, libc::SYS_gettimeofday,
    libc::SYS_getrandom,
];

/// Beside those, of a machine whose network is made of this process' sockets.
const NETWORK: &[i64] =
    &[libc::SYS_connect, libc::SYS_getsockopt, libc::SYS_getpeername, libc::SYS_timerfd_settime];

/// What may be asked of terminals and sockets. TIOCSTI, which types into a terminal, is not among it.
const IOCTLS: &[u64] = &[
    libc::FIONBIO,
    libc::FIONREAD,
    libc::TCGETS,
    libc::TCSETS,
    libc::TCSETSW,
    libc::TCSETSF,
    libc::TCGETS2,
    libc::TCSETS2,
    libc::TCSETSW2,
    libc::TCSETSF2,
    libc::TIOCGWINSZ,
];

/// The bits of a socket's type that are no flags.
const SOCKET_TYPE: u64 = 0xf;

const FCNTLS: &[u64] = &[
    libc::F_DUPFD_CLOEXEC as u64,
    libc::F_GETFD as u64,
    libc::F_SETFD as u64,
    libc::F_GETFL as u64,
    libc::F_SETFL as u64,
];

/// The filters, with the engine's `requests` of ioctl and what `network` needs, to be installed one after the other; the strictest answer counts.
///
/// # Errors
/// The host's processor is not one the filter compiler knows.
pub(crate) fn filters(requests: &[u64], network: Network) -> Result<Vec<BpfProgram>, Error> {
    let error = |source| Error::Filter { arch: ARCH, source };
    let arch = TargetArch::try_from(ARCH).map_err(error)?;
    pair(arch, allowed(requests, network)).map_err(error)
}

/// What is [`absent`], and after it what is allowed.
fn pair(arch: TargetArch, allowed: Result<Rules, BackendError>) -> Result<Vec<BpfProgram>, BackendError> {
    let no_such_call = SeccompAction::Errno(libc::ENOSYS as u32);
    let absent = SeccompFilter::new(absent()?, SeccompAction::Allow, no_such_call, arch)?.try_into()?;
    let allowed =
        SeccompFilter::new(allowed?, SeccompAction::Trap, SeccompAction::Allow, arch)?.try_into()?;
    Ok(vec![absent, allowed])
}

/// Answered as by a kernel that does not have them. The flags of clone3 lie in memory, where no filter sees them; the C
/// library then takes clone. It starts processes with all signals blocked, and a violation that cannot be handled would be
/// a death without a word: so the start fails instead.
fn absent() -> Result<Rules, BackendError> {
    let no_thread = rule(0, SeccompCmpOp::MaskedEq(libc::CLONE_THREAD as u64), 0)?;
    Ok(Rules::from([(libc::SYS_clone3, Vec::new()), (libc::SYS_clone, vec![no_thread])]))
}

/// Of a server of folders: one thread, which answers on one socket and looks after files below descriptors that it has.
#[rustfmt::skip]
const FOLDERS: &[i64] = &[
    libc::SYS_recvmsg, libc::SYS_sendmsg, libc::SYS_sendto, libc::SYS_close, libc::SYS_write,
    // Names.
    libc::SYS_openat, libc::SYS_openat2, libc::SYS_newfstatat, libc::SYS_fstat, libc::SYS_statx, libc::SYS_readlinkat,
    libc::SYS_getdents64, libc::SYS_fstatfs, libc::SYS_lseek, libc::SYS_getxattr, libc::SYS_listxattr,
    libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_syncfs,
    // Memory, time, and the end.
    libc::SYS_brk, libc::SYS_madvise, libc::SYS_mremap, libc::SYS_munmap, libc::SYS_futex, libc::SYS_getrandom,
    libc::SYS_clock_gettime, libc::SYS_sigaltstack, libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn, libc::SYS_gettid, libc::SYS_getpid, libc::SYS_restart_syscall, libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Beside those, of one that serves a folder which the guest may change.
#[rustfmt::skip]
const CHANGING: &[i64] = &[
    libc::SYS_mkdirat, libc::SYS_mknodat, libc::SYS_symlinkat, libc::SYS_linkat, libc::SYS_unlinkat,
    libc::SYS_renameat2, libc::SYS_renameat, libc::SYS_fchmodat, libc::SYS_fchownat, libc::SYS_utimensat, libc::SYS_ftruncate,
    libc::SYS_fallocate, libc::SYS_copy_file_range, libc::SYS_setxattr, libc::SYS_removexattr,
];

/// The filter of a server of folders, one of which may be changed or none.
///
/// # Errors
/// As [`filters`].
pub(crate) fn folders(changing: bool) -> Result<BpfProgram, Error> {
    let error = |source| Error::Filter { arch: ARCH, source };
    let arch = TargetArch::try_from(ARCH).map_err(error)?;
    let compile = || -> Result<BpfProgram, BackendError> {
        let mut rules: Rules = FOLDERS.iter().map(|number| (*number, Vec::new())).collect();
        if changing {
            rules.extend(CHANGING.iter().map(|number| (*number, Vec::new())));
        }
        let no_exec = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
        rules.insert(libc::SYS_mmap, vec![rule(2, no_exec, 0)?]);
        rules.insert(libc::SYS_fcntl, vec![rule(1, SeccompCmpOp::Eq, libc::F_DUPFD_CLOEXEC as u64)?]);
        rules.insert(libc::SYS_tgkill, vec![rule(0, SeccompCmpOp::Eq, u64::from(std::process::id()))?]);
        SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, arch)?.try_into()
    };
    compile().map_err(error)
}

/// Of a server of names: sockets over IP, files that are read, and a thread that waits for the end.
#[rustfmt::skip]
const NAMES: &[i64] = &[
    libc::SYS_bind, libc::SYS_connect, libc::SYS_accept4, libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_sendmsg,
    libc::SYS_recvmsg, libc::SYS_shutdown, libc::SYS_getsockopt, libc::SYS_getsockname, libc::SYS_getpeername,
    libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_eventfd2,
    libc::SYS_read, libc::SYS_write, libc::SYS_readv, libc::SYS_writev, libc::SYS_close, libc::SYS_lseek,
    libc::SYS_newfstatat, libc::SYS_fstat, libc::SYS_statx, libc::SYS_getdents64, libc::SYS_flock, libc::SYS_dup3,
    // Threads, memory, time, and the end.
    libc::SYS_futex, libc::SYS_clone, libc::SYS_clone3, libc::SYS_set_robust_list, libc::SYS_rseq, libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity, libc::SYS_gettid, libc::SYS_getpid, libc::SYS_exit, libc::SYS_exit_group,
    libc::SYS_restart_syscall, libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack, libc::SYS_brk, libc::SYS_madvise, libc::SYS_mremap, libc::SYS_munmap, libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep, libc::SYS_getrandom,
];

/// The filters of a server of names.
///
/// # Errors
/// As [`filters`].
pub(crate) fn names() -> Result<Vec<BpfProgram>, Error> {
    let error = |source| Error::Filter { arch: ARCH, source };
    let arch = TargetArch::try_from(ARCH).map_err(error)?;
    let rules = || -> Result<Rules, BackendError> {
        let mut rules: Rules = NAMES.iter().map(|number| (*number, Vec::new())).collect();
        // Other words for epoll_pwait without a mask and dup3 without flags, where there are such.
        #[cfg(target_arch = "x86_64")]
        rules.extend([(libc::SYS_epoll_wait, Vec::new()), (libc::SYS_dup2, Vec::new())]);
        let no_exec = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
        rules.insert(libc::SYS_mmap, vec![rule(2, no_exec.clone(), 0)?]);
        rules.insert(libc::SYS_mprotect, vec![rule(2, no_exec, 0)?]);
        let written = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) as u64;
        rules
            .insert(libc::SYS_openat, vec![rule(2, SeccompCmpOp::MaskedEq(written), libc::O_RDONLY as u64)?]);
        rules.insert(libc::SYS_socket, sockets(&[libc::AF_INET, libc::AF_INET6])?);
        rules.insert(libc::SYS_socketpair, pairs()?);
        rules.insert(libc::SYS_ioctl, vec![rule(1, SeccompCmpOp::Eq, libc::FIONBIO)?]);
        let requests = FCNTLS.iter().map(|request| rule(1, SeccompCmpOp::Eq, *request));
        rules.insert(libc::SYS_fcntl, requests.collect::<Result<_, _>>()?);
        rules.insert(libc::SYS_prctl, vec![rule(0, SeccompCmpOp::Eq, libc::PR_SET_NAME as u64)?]);
        rules.insert(libc::SYS_tgkill, vec![rule(0, SeccompCmpOp::Eq, u64::from(std::process::id()))?]);
        Ok(rules)
    };
    pair(arch, rules()).map_err(error)
}

/// Pairs of streams, which stay connected to each other, also where `connect` is allowed.
fn pairs() -> Result<Vec<SeccompRule>, BackendError> {
    let family = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, libc::AF_UNIX as u64)?;
    let kind = SeccompCmpOp::MaskedEq(SOCKET_TYPE);
    let stream = SeccompCondition::new(1, SeccompCmpArgLen::Dword, kind, libc::SOCK_STREAM as u64)?;
    Ok(vec![SeccompRule::new(vec![family, stream])?])
}

/// Streams and datagrams of these families; no raw sockets, and no sockets of files.
fn sockets(families: &[i32]) -> Result<Vec<SeccompRule>, BackendError> {
    let mut rules = Vec::new();
    for family in families {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            let family = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *family as u64)?;
            let masked = SeccompCmpOp::MaskedEq(SOCKET_TYPE);
            let kind = SeccompCondition::new(1, SeccompCmpArgLen::Dword, masked, kind as u64)?;
            rules.push(SeccompRule::new(vec![family, kind])?);
        }
    }
    Ok(rules)
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn allowed(engine: &[u64], network: Network) -> Result<Rules, BackendError> {
    let mut rules: Rules = ANY.iter().map(|number| (*number, Vec::new())).collect();
    let is = SeccompCmpOp::Eq;
    let no_exec = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
    rules.insert(libc::SYS_mmap, vec![rule(2, no_exec.clone(), 0)?]);
    rules.insert(libc::SYS_mprotect, vec![rule(2, no_exec, 0)?]);
    rules.insert(libc::SYS_socketpair, pairs()?);
    rules.insert(libc::SYS_prctl, vec![rule(0, is.clone(), libc::PR_SET_NAME as u64)?]);
    // For abort(), and to get a vCPU out of the host's kernel; no other process.
    rules.insert(libc::SYS_tgkill, vec![rule(0, is.clone(), u64::from(std::process::id()))?]);
    let socket = SeccompCondition::new(1, SeccompCmpArgLen::Dword, is.clone(), libc::SOL_SOCKET as u64)?;
    let timeout = |option: i32| {
        let option = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, option as u64)?;
        SeccompRule::new(vec![socket.clone(), option])
    };
    let mut options = vec![timeout(libc::SO_RCVTIMEO)?, timeout(libc::SO_SNDTIMEO)?];
    if network == Network::Sockets {
        rules.extend(NETWORK.iter().map(|number| (*number, Vec::new())));
        rules.insert(libc::SYS_socket, sockets(&[libc::AF_INET])?);
        let tcp = SeccompCondition::new(1, SeccompCmpArgLen::Dword, is.clone(), libc::IPPROTO_TCP as u64)?;
        let no_delay =
            SeccompCondition::new(2, SeccompCmpArgLen::Dword, is.clone(), libc::TCP_NODELAY as u64)?;
        options.push(SeccompRule::new(vec![tcp, no_delay])?);
    }
    rules.insert(libc::SYS_setsockopt, options);
    let mut ioctls = [IOCTLS, engine].concat();
    if let Network::Interface(request) = network {
        ioctls.push(request);
    }
    for (call, requests) in [(libc::SYS_ioctl, ioctls.as_slice()), (libc::SYS_fcntl, FCNTLS)] {
        let allowed: Result<_, _> = requests.iter().map(|request| rule(1, is.clone(), *request)).collect();
        rules.insert(call, allowed?);
    }
    Ok(rules)
}

/// An argument, compared as 32 bits: what is checked here is no wider, and the kernel looks at no more of it.
fn rule(argument: u8, how: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, how, value)?])
}
