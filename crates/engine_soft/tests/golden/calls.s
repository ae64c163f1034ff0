# Calls and returns: the host's stack predicts them, the guest's decides.

case call user
    call 1f
    ret
    .skip 64, 0xcc
1:  cmp rax, rbx
    ret

case call_back user at=0x100
1:  ret
    .skip 0xff, 0x90
    call 1b
    ret

case call_with_live_flags user
    cmp rax, rbx
    call 1f
    .skip 64, 0xcc
1:  je 1b
    ret

case call_to_another_page user
    call . + 0x10000
    ret

case call_at_the_end_of_a_page user at=0xffb
    .skip 0xffb, 0x90
    call . - 0x800

case call_of_a_register user
    call *rax
    ret

case call_of_a_register_in_memory user
    call *r11
    ret

case call_through_memory user
    call *0x18(rbx)
    ret

case call_relative_to_rip kernel
    call *0x100(rip)
    ret

case return user
    ret

case return_that_drops_arguments user
    ret $16

case return_with_live_flags user
    cmp rax, rbx
    ret

case return_in_the_kernel kernel
    ret
