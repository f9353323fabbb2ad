; p = 2**x / sum of 2**x over 16 values in two vectors: a softmax in base 2.
;
; x has 8 fraction bits (constants 0 and 1); p has 15 and goes to MEM bank 2, words 0 and 1. The
; largest x is subtracted first; 1 / sum is a float12. Bank 0 keeps both for the second pass,
; bank 1 the powers, which have 14 fraction bits.

.profile tiny
.row * generate=48 prompt=48

.const 0 -799 -941 -55 56 -88 119 -706 -1027
.const 1 758 -1023 1056 57 -422 -1337 904 -484

.queue const
    READ at=4 n1=2 s1=1
    READ at=12 n1=2 s1=1
    END

.queue red
    MAX at=6 n1=2 x=CONST
    RECIP at=22 n1=2 x=VXM post=15
    END

.queue w0
    WRITE at=12 x=RED halves=3              ; the maximum
    WRITE at=33 address=1 x=RED halves=3    ; 2**15 / sum
    END

.queue r0
    READ at=13 n1=2
    READ at=34 n1=2 address=1
    END

.queue vxm
    EXP2 at=14 n1=2 a=CONST c=M0 post=15
    MAC at=35 n1=2 a=M1 b=M0 b_float=1
    END

.queue w1
    WRITE at=22 n1=2 s1=1 x=VXM halves=3
    END

.queue r1
    READ at=34 n1=2 s1=1
    END

.queue w2
    WRITE at=43 n1=2 s1=1 x=VXM halves=3
    END
