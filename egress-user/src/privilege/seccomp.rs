//! System calls: a list of those that the daemon makes; any other fails with EPERM.
//!
//! EPERM and not death: a libc that learns a new call falls back to what it did before, and a daemon that dies could no
//! longer refresh names.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as Condition,
    SeccompFilter, SeccompRule, TargetArch,
};

use super::{PrivilegeError, Role};

/// Memory, threads, time, signals, and descriptors that are there already.
const COMMON: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_clone3,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getcwd,
    libc::SYS_geteuid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_prlimit64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_uname,
    libc::SYS_write,
    libc::SYS_writev,
    // Opening and looking at files.
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_readlinkat,
    libc::SYS_statfs,
    libc::SYS_statx,
];

/// Calls that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const LEGACY: &[libc::c_long] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
    libc::SYS_lstat,
    libc::SYS_open,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_stat,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const LEGACY: &[libc::c_long] = &[];

/// The kernel's tables, sockets, and files that are written.
const CONTROL: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_bpf,
    libc::SYS_connect,
    libc::SYS_copy_file_range,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    // Which `ioctl` is a matter of the descriptor: FIONBIO of a socket, an interface's index and name.
    libc::SYS_ioctl,
    libc::SYS_listen,
    libc::SYS_mkdirat,
    libc::SYS_pipe2,
    libc::SYS_pwrite64,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
    libc::SYS_unlinkat,
    libc::SYS_umask,
];
#[cfg(target_arch = "x86_64")]
const CONTROL_LEGACY: &[libc::c_long] =
    &[libc::SYS_chmod, libc::SYS_mkdir, libc::SYS_rename, libc::SYS_rmdir, libc::SYS_unlink];
#[cfg(not(target_arch = "x86_64"))]
const CONTROL_LEGACY: &[libc::c_long] = &[];

/// What a socket may be: DNS and metrics, the control socket, systemd, the network's changes. No raw or packet sockets.
const FAMILIES: [i32; 4] = [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX, libc::AF_NETLINK];

pub(super) fn install(role: Role) -> Result<(), PrivilegeError> {
    for filter in filters(role).map_err(|error| PrivilegeError::Seccomp(error.to_string()))? {
        seccompiler::apply_filter(&filter).map_err(|error| PrivilegeError::Seccomp(error.to_string()))?;
    }
    Ok(())
}

/// Two filters: one that answers `clone3` with ENOSYS, since its flags cannot be looked at (libc takes `clone` then, whose
/// flags can), and the list, last, since it forbids further filters.
fn filters(role: Role) -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let list = SeccompFilter::new(rules(role)?, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow, arch)?;
    let clone3 = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
        arch,
    )?;
    Ok([clone3.try_into()?, list.try_into()?])
}

fn rules(role: Role) -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut calls = vec![COMMON, LEGACY];
    if role == Role::Control {
        calls.extend([CONTROL, CONTROL_LEGACY]);
    }
    for call in calls.into_iter().flatten() {
        rules.insert(*call, Vec::new());
    }
    let when = |argument, length, op, value| -> Result<SeccompRule, seccompiler::BackendError> {
        SeccompRule::new(vec![Condition::new(argument, length, op, value)?])
    };
    // Threads, never processes.
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![when(0, Len::Qword, Op::MaskedEq(thread), thread)?]);
    rules.insert(libc::SYS_prctl, vec![when(0, Len::Dword, Op::Eq, libc::PR_SET_NAME as u64)?]);
    // A signal to itself alone: `abort` after a panic.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![when(0, Len::Dword, Op::Eq, own)?]);
    if role == Role::Events {
        // New cgroups, by an inotify instance that was made before.
        rules.insert(libc::SYS_inotify_add_watch, Vec::new());
        // if_indextoname(3): asked by a Unix socket that can neither connect nor send here.
        rules.insert(libc::SYS_socket, vec![when(0, Len::Dword, Op::Eq, libc::AF_UNIX as u64)?]);
        rules.insert(libc::SYS_ioctl, vec![when(1, Len::Dword, Op::Eq, libc::SIOCGIFNAME)?]);
    }
    if role == Role::Control {
        let families = FAMILIES.iter().map(|family| when(0, Len::Dword, Op::Eq, *family as u64));
        rules.insert(libc::SYS_socket, families.collect::<Result<_, _>>()?);
    }
    Ok(rules)
}
