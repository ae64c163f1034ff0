//! What can be wrong with a kernel, an initial RAM disk or a command line.

/// What can be wrong with a kernel, an initial RAM disk or a command line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is something else.
    #[error("not a kernel but {found}")]
    NotAKernel {
        /// What it looks like.
        found: &'static str,
    },
    /// A kernel for another instruction set.
    #[error("kernel is for {isa}, this machine is x86-64")]
    OtherIsa {
        /// Its instruction set.
        isa: &'static str,
    },
    /// The file ends before something its headers promise.
    #[error("kernel file is truncated: {what} ends at byte {end:#x}, the file at {len:#x}")]
    Truncated {
        /// What is cut off.
        what: &'static str,
        /// First byte after it.
        end: u64,
        /// Bytes in the file.
        len: u64,
    },
    /// The file could not be read.
    #[error("read kernel at byte {offset:#x}")]
    Read {
        /// Where.
        offset: u64,
        /// What the host said.
        #[source]
        source: std::io::Error,
    },
    /// A header field has a value that makes no sense.
    #[error("kernel header: {field}: {reason}")]
    Header {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A bzImage of a boot protocol that is too old to say where its payload is.
    #[error("boot protocol {}.{:02} is older than 2.08 (Linux 2.6.26)", version >> 8, version & 0xff)]
    OldProtocol {
        /// Major version in bits 15..=8, minor below.
        version: u16,
    },
    /// The payload of a bzImage starts with no known magic number.
    #[error("kernel is compressed in an unknown way")]
    UnknownCompression,
    /// The payload does not decompress.
    #[error("decompress kernel ({compression})")]
    Decompress {
        /// By which algorithm.
        compression: &'static str,
        /// What the decompressor said.
        #[source]
        source: std::io::Error,
    },
    /// The payload decompresses to more than any kernel is large.
    #[error("kernel decompresses to more than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// The payload decompresses to something else than an ELF file.
    #[error("decompressed kernel is not an ELF file")]
    PayloadNotElf,
    /// PVH was asked for.
    #[error("kernel has no PVH entry point")]
    NoPvh,
    /// The Linux 64-bit protocol was asked for.
    #[error("kernel is a 32-bit ELF file and cannot be entered in 64-bit mode")]
    NotLong,
    /// A part of the kernel lies where there is no memory.
    #[error("kernel needs memory at {start:#x}..{end:#x}, the machine has {memory_mib} MiB")]
    KernelDoesNotFit {
        /// First address.
        start: u64,
        /// First address after it.
        end: u64,
        /// The machine's memory in MiB.
        memory_mib: u64,
    },
    /// The initial RAM disk is larger than what the kernel leaves of low memory.
    #[error("initrd of {initrd_mib} MiB does not fit in {memory_mib} MiB of memory")]
    InitrdDoesNotFit {
        /// Its size in MiB, rounded up.
        initrd_mib: u64,
        /// The machine's memory in MiB.
        memory_mib: u64,
    },
    /// The command line is too long.
    #[error("command line of {len} bytes is longer than {max}")]
    CmdlineTooLong {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// Writing guest memory failed.
    #[error("write guest memory")]
    Memory(#[from] memory::Error),
}
