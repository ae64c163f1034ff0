//! Names of the system calls that a mistake of ours, or an attack, is likely to make.

macro_rules! names {
    ($($name:ident)*) => { &[$((stringify!($name), libc::$name)),*] };
}

const NAMES: &[(&str, i64)] = names! {
    SYS_accept4 SYS_add_key SYS_bind SYS_bpf SYS_capset SYS_chdir SYS_chroot SYS_clone SYS_clone3 SYS_close_range SYS_connect
    SYS_copy_file_range SYS_execve SYS_execveat SYS_faccessat SYS_fchdir SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_fcntl
    SYS_fgetxattr SYS_finit_module SYS_fsetxattr SYS_fsopen SYS_fstatfs SYS_getcwd SYS_getdents64 SYS_getegid SYS_geteuid SYS_getgid
    SYS_getpeername SYS_getppid SYS_getrlimit SYS_getrusage SYS_getsockname SYS_getsockopt SYS_getuid SYS_init_module
    SYS_inotify_add_watch SYS_inotify_init1 SYS_io_uring_enter SYS_io_uring_register SYS_io_uring_setup SYS_ioctl SYS_kexec_load
    SYS_keyctl SYS_kill SYS_landlock_create_ruleset SYS_linkat SYS_listen SYS_memfd_create SYS_mincore SYS_mkdirat SYS_mknodat
    SYS_mlock SYS_mmap SYS_mount SYS_mprotect SYS_msync SYS_name_to_handle_at SYS_open_by_handle_at SYS_open_tree SYS_openat
    SYS_openat2 SYS_perf_event_open SYS_personality SYS_pidfd_getfd SYS_pidfd_open SYS_pidfd_send_signal SYS_pivot_root
    SYS_pkey_mprotect SYS_prctl SYS_prlimit64 SYS_process_vm_readv SYS_process_vm_writev SYS_ptrace SYS_readlinkat SYS_reboot
    SYS_recvmmsg SYS_recvmsg SYS_renameat2 SYS_rt_sigqueueinfo SYS_sched_setaffinity SYS_seccomp SYS_sendfile SYS_sendmmsg
    SYS_sendmsg SYS_setgid SYS_setgroups SYS_setns SYS_setpgid SYS_setpriority SYS_setresgid SYS_setresuid SYS_setsid
    SYS_setsockopt SYS_setuid SYS_shmat SYS_shmget SYS_socket SYS_socketpair SYS_splice SYS_statfs SYS_statx SYS_swapon
    SYS_symlinkat SYS_sync SYS_syncfs SYS_sysinfo SYS_tgkill SYS_timer_create SYS_timerfd_create SYS_tkill SYS_umask SYS_umount2
    SYS_uname SYS_unlinkat SYS_unshare SYS_userfaultfd SYS_utimensat SYS_vmsplice SYS_wait4 SYS_waitid
};

/// Calls that later processors of Linux do without.
#[cfg(target_arch = "x86_64")]
const OLD_NAMES: &[(&str, i64)] = names! {
    SYS_access SYS_arch_prctl SYS_chmod SYS_chown SYS_creat SYS_dup2 SYS_epoll_create SYS_epoll_wait SYS_eventfd SYS_fork
    SYS_getdents SYS_ioperm SYS_iopl SYS_link SYS_lstat SYS_mkdir SYS_mknod SYS_modify_ldt SYS_newfstatat SYS_open SYS_pause SYS_pipe
    SYS_poll SYS_readlink SYS_rename SYS_renameat SYS_rmdir SYS_select SYS_stat SYS_symlink SYS_unlink SYS_vfork
};
#[cfg(not(target_arch = "x86_64"))]
const OLD_NAMES: &[(&str, i64)] = &[];

/// The name of call `number`, as its manual page has it.
pub(crate) fn name(number: i64) -> Option<&'static str> {
    let found = NAMES.iter().chain(OLD_NAMES).find(|row| row.1 == number);
    found.map(|(name, _)| name.strip_prefix("SYS_").unwrap_or(name))
}
