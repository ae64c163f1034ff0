# 32-bit code in flat segments: addresses are computed to 32 bits, slots on the stack have four bytes.
.code32

case code32_moves user code32
    mov eax, ebx
    mov esp, ebp
    inc ecx
    dec esp
    incw dx
    add ecx, eax
    movzx bl, eax
    mov ah, dl
    xchg eax, edx
    lea 8(ebx,ecx,4), esi
    lea -4(esp), esp
    cdq
    sete al
    imul ebx, eax
    shld $3, eax, edx
    bswap edi
    int3

case code32_memory user code32 common
    mov 0xc0100000, eax
    mov eax, 0x8049000
    mov (ebx), ecx
    mov -8(ebx), edx
    add $4, ebx
    mov ecx, (ebx,esi,4)
    movb $1, 0x10(,edi,8)
    mov gs:0x14, eax
    xor gs:(ecx), eax
    incl es:(edi)
    int3

case code32_kernel_memory kernel code32 common
    mov 4(ebx), eax
    mov 8(ebx), ecx
    mov fs:0xc1000000, edx
    lock cmpxchg ecx, (edx)
    bts eax, (ecx)
    int3

case code32_stack user code32 variants
    push ebp
    mov esp, ebp
    push $-1
    push 8(ebp)
    sub $0x10, esp
    mov -4(ebp), eax
    mov eax, 4(esp)
    pop ecx
    leave
    ret

case code32_call user code32 blocks=2
    call 1f
    int3
1:  ret $8

case code32_call_elsewhere user code32
    call . + 0x2000

case code32_jumps user code32
    cmp eax, ebx
    jb 1f
    jmp *4(ecx,eax,4)
1:  int3

case code32_indirect user code32
    call *edx

case code32_loop user code32 common
1:  add (esi), eax
    add $4, esi
    dec ecx
    jne 1b

case code32_vectors user code32 common
    movss 4(esp), xmm0
    addss xmm1, xmm0
    fldl 8(esp)
    faddp st, st(1)
    movaps xmm0, (eax)
    int3

# By the interpreter's handler.
case code32_handlers user code32 common
    pusha
    aaa
    pushw ax
    mov cs:(eax), ebx
    mov (bx), al
    vzeroupper
    int $0x80
