//! Exceptions and their vectors (SDM vol. 3 ch. 6).

/// An exception or interrupt vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Vector {
    DivideError = 0,
    Debug = 1,
    Nmi = 2,
    Breakpoint = 3,
    Overflow = 4,
    BoundRange = 5,
    InvalidOpcode = 6,
    DeviceNotAvailable = 7,
    DoubleFault = 8,
    InvalidTss = 10,
    SegmentNotPresent = 11,
    StackFault = 12,
    GeneralProtection = 13,
    PageFault = 14,
    X87Error = 16,
    AlignmentCheck = 17,
    MachineCheck = 18,
    SimdError = 19,
}

impl Vector {
    /// Whether the processor pushes an error code for this exception.
    pub const fn has_error_code(self) -> bool {
        matches!(
            self,
            Self::DoubleFault
                | Self::InvalidTss
                | Self::SegmentNotPresent
                | Self::StackFault
                | Self::GeneralProtection
                | Self::PageFault
                | Self::AlignmentCheck
        )
    }
}

/// A fault, as an instruction raises it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Which one.
    pub vector: Vector,
    /// The error code to push; meaningful only where [`Vector::has_error_code`].
    pub error_code: u32,
    /// The faulting linear address; meaningful only for page faults.
    pub address: u64,
}

impl Exception {
    /// An exception with an error code of zero.
    pub const fn new(vector: Vector) -> Self {
        Self { vector, error_code: 0, address: 0 }
    }

    /// An exception with the given error code, e.g. a selector.
    pub const fn with_code(vector: Vector, error_code: u32) -> Self {
        Self { vector, error_code, address: 0 }
    }

    /// #GP(0), the most common answer to nonsense.
    pub const GP0: Self = Self::new(Vector::GeneralProtection);
    /// #UD.
    pub const UD: Self = Self::new(Vector::InvalidOpcode);
    /// #NM.
    pub const NM: Self = Self::new(Vector::DeviceNotAvailable);

    /// A page fault at linear `address`; `error_code` from [`PageFaultCode`] bits.
    pub const fn page_fault(address: u64, error_code: u32) -> Self {
        Self { vector: Vector::PageFault, error_code, address }
    }
}

/// Bits of a page fault's error code.
#[derive(Clone, Copy, Debug)]
pub struct PageFaultCode;

impl PageFaultCode {
    /// The page was present: a protection violation.
    pub const PRESENT: u32 = 1 << 0;
    /// The access was a write.
    pub const WRITE: u32 = 1 << 1;
    /// The access came from privilege level 3.
    pub const USER: u32 = 1 << 2;
    /// A reserved bit was set in a paging structure.
    pub const RESERVED: u32 = 1 << 3;
    /// The access was an instruction fetch (only with NX or SMEP).
    pub const FETCH: u32 = 1 << 4;
}
