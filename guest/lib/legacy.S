// Entry by PVH in 32-bit protected mode without paging, exception stubs, and virtual-8086 mode.

    .section .note.pvh, "a"
    .long 4, 4, 18
    .asciz "Xen"
    .long _start

    .text
    .globl _start
_start:
    cli
    cld
    mov $boot_stack_top, %esp
    lgdt gdt_pointer
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    ljmp $0x08, $1f
1:  call start_c
2:  hlt
    jmp 2b

    .altmacro
    .macro stub vector
    .balign 16
    .if \vector == 8 || (\vector >= 10 && \vector <= 14) || \vector == 17
    .else
    pushl $0
    .endif
    pushl $\vector
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
    pushal
    push %ds
    push %es
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    cld
    mov %esp, %eax
    push %eax
    call trap_c
    add $4, %esp
    pop %es
    pop %ds
    popal
    add $8, %esp
    iretl

// void enter(u32 ip, u32 cs, u32 flags, u32 sp, u32 ss): by iret to CPL 3, or with VM in flags to virtual-8086
// mode; comes back by the first exception.
    .globl enter
enter:
    push %ebx
    push %ebp
    push %esi
    push %edi
    movl $1f, resume_rip
    mov %esp, resume_rsp
    mov %ebp, resume_rbp
    mov %esp, %ebp
    pushl $0x50                 // gs, fs, ds, es: of virtual-8086 mode only
    pushl $0x40
    pushl $0x30
    pushl $0x20
    pushl 36(%ebp)
    pushl 32(%ebp)
    pushl 28(%ebp)
    pushl 24(%ebp)
    pushl 20(%ebp)
    iretl
1:  pop %edi
    pop %esi
    pop %ebp
    pop %ebx
    ret

    .data
    .balign 16
    .globl gdt
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff    // 08 code, 32-bit
    .quad 0x00cf93000000ffff    // 10 data
    .quad 0x00cffb000000ffff    // 18 user code
    .quad 0x00cff3000000ffff    // 20 user data
    .quad 0                     // 28 main TSS
    .quad 0                     // 30 second TSS
    .quad 0                     // 38 local table
    .quad 0x00cf13000000ffff    // 40 data, not present
    .quad 0x00009b000000ffff    // 48 code, 16-bit
    .quad 0x000093000000ffff    // 50 data, 16-bit, 64 KiB
    .fill 16, 8, 0              // 58 to d0: the program's
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt

    .bss
    .balign 16
    .skip 0x8000
boot_stack_top:
