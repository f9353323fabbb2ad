; p = 2**x / sum of 2**x over 16 values in two vectors: a softmax in base 2.
;
; x has 8 fraction bits (constants 0 and 1); p has 15 and goes to MEM bank 2, words 0 and 1. The
; largest x is subtracted first; 1 / sum is a float12. Bank 0 keeps both for the second pass,
; bank 1 the powers, which have 14 fraction bits.

.profile tiny
.let x first_issue+const_read
.let peak x+vxm+1+reduce                ; the largest x is on RED
.let power peak+mem_write_to_read+mem_read
.let inverse power+vxm+1+reduce_function
.let scale inverse+mem_write_to_read+mem_read
.row * generate=scale+vxm+3 prompt=scale+vxm+3

.const 0 -799 -941 -55 56 -88 119 -706 -1027
.const 1 758 -1023 1056 57 -422 -1337 904 -484

.queue const
    READ at=first_issue n1=2 s1=1
    READ at=power-const_read n1=2 s1=1
    END

.queue red
    MAX at=x+vxm n1=2 x=VXM
    RECIP at=power+vxm n1=2 x=VXM post=15
    END

.queue w0
    WRITE at=peak x=RED halves=3            ; the maximum
    WRITE at=inverse address=1 x=RED halves=3   ; 2**15 / sum
    END

.queue r0
    READ at=peak+mem_write_to_read n1=2
    READ at=inverse+mem_write_to_read n1=2 address=1
    END

.queue vxm
    MAC at=x n1=2 a=CONST                   ; as it is, on its way to the reduction
    EXP2 at=power n1=2 a=CONST c=M0 post=15
    MAC at=scale n1=2 a=M1 b=M0 b_float=1
    END

.queue w1
    WRITE at=power+vxm n1=2 s1=1 x=VXM halves=3
    END

.queue r1
    READ at=inverse+mem_write_to_read n1=2 s1=1
    END

.queue w2
    WRITE at=scale+vxm n1=2 s1=1 x=VXM halves=3
    END
