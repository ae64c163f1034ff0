// Entry by PVH, long mode with paging, exception stubs, entry to user mode, and the start of other CPUs.
//
// Memory: the first GiB is mapped at its own address for the supervisor and again at USER for everyone; the
// fourth GiB (local and I/O APIC) is mapped uncached. Programs have the rest of the address space.

    .section .note.pvh, "a"
    .long 4, 8, 18
    .asciz "Xen"
    .quad _start

    .text
    .code32
    .globl _start
_start:
    cli
    cld
    mov $boot_stack_top, %esp
    call enter_long
    ljmp $0x08, $long_start

// To long mode; returns in compatibility mode's 32-bit code of the old descriptor cache.
enter_long:
    mov %cr4, %eax
    or $0x620, %eax             // PAE, OSFXSR, OSXMMEXCPT
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x901, %eax             // NXE, LME, SCE
    wrmsr
    mov $0x80010033, %eax       // PG, WP, NE, ET, MP, PE
    mov %eax, %cr0
    lgdt gdt_pointer
    ret

    .code64
load_segments:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    ret

long_start:
    mov $boot_stack_top, %esp
    call load_segments
    call start_c
1:  hlt
    jmp 1b

// Other CPUs start here in real mode, copied to physical 0x8000.
    .code16
    .globl ap_start, ap_start_end
ap_start:
    cli
    xor %ax, %ax
    mov %ax, %ds
    lgdtl 0x8000 + ap_gdt_pointer - ap_start
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $0x40, $ap_start32
ap_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
ap_start_end:

    .code32
ap_start32:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $1, %eax
    lock xadd %eax, ap_count
    inc %eax
    mov %eax, %ebp              // number of this CPU, from 1
    imul $0x4000, %eax, %eax
    lea ap_stacks(%eax), %esp   // the end of stack number - 1
    call enter_long
    ljmp $0x08, $1f
    .code64
1:  mov %ebp, %ebx
    call load_segments
    mov %ebx, %edi
    call ap_start_c
2:  hlt
    jmp 2b

// Exception and interrupt stubs, 16 bytes each.
    .altmacro
    .macro stub vector
    .balign 16
    .if \vector == 8 || (\vector >= 10 && \vector <= 14) || \vector == 17
    .else
    pushq $0
    .endif
    pushq $\vector
    jmp common_stub
    .endm
    .balign 16
    .globl stubs
stubs:
    .set v, 0
    .rept 256
    stub %v
    .set v, v + 1
    .endr

common_stub:
    push %rax
    push %rcx
    push %rdx
    push %rbx
    push %rbp
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, %rdi
    cld
    call trap_c
    .globl restore
restore:
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rbp
    pop %rbx
    pop %rdx
    pop %rcx
    pop %rax
    add $16, %rsp
    iretq

// void enter_user(word rip, word rsp, word flags, word argument): comes back by the first exception or int $0x80.
    .globl enter_user
enter_user:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    lea 1f(%rip), %rax
    mov %rax, resume_rip(%rip)
    mov %rsp, resume_rsp(%rip)
    pushq $0x23
    push %rsi
    push %rdx
    mov user_cs(%rip), %eax
    push %rax
    push %rdi
    mov %rcx, %rdi
    iretq
1:  pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

    .data
    .globl user_cs
user_cs: .long 0x2b

    .balign 16
    .globl gdt
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    // 08 kernel code, 64-bit
    .quad 0x00cf93000000ffff    // 10 kernel data
    .quad 0x00cffb000000ffff    // 18 user code, 32-bit
    .quad 0x00cff3000000ffff    // 20 user data
    .quad 0x00affb000000ffff    // 28 user code, 64-bit
    .quad 0, 0                  // 30 TSS
    .quad 0x00cf9b000000ffff    // 40 kernel code, 32-bit
    .quad 0x00cf13000000ffff    // 48 data, not present
    .quad 0x00009b000000ffff    // 50 kernel code, 16-bit
    .quad 0x00af1b000000ffff    // 58 code, not present
    .quad 0, 0, 0, 0, 0, 0, 0, 0 // 60 to 98: the program's
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt

    .balign 4096
    .globl pml4
pml4:
    .quad pdpt + 7
    .fill 511, 8, 0
    .globl pdpt
pdpt:
    .quad pd_kernel + 3
    .quad 0, 0
    .quad pd_mmio + 3
    .fill 252, 8, 0
    .quad pd_user + 7           // USER = 256 GiB
    .fill 255, 8, 0
    .globl pd_kernel
pd_kernel:
    .set i, 0
    .rept 512
    .quad (i << 21) + 0x83
    .set i, i + 1
    .endr
pd_mmio:
    .set i, 0
    .rept 512
    .quad (3 << 30) + (i << 21) + 0x9b
    .set i, i + 1
    .endr
pd_user:
    .set i, 0
    .rept 512
    .quad (i << 21) + 0x87
    .set i, i + 1
    .endr

    .bss
    .balign 16
    .skip 0x8000
boot_stack_top:
ap_stacks:
    .skip 0x4000 * 16
