// Behaviour of the ECP5 cells that a netlist of this machine consists of, as their data sheets have
// it, for simulation.
//
// Registers of slices and memories start as the bitstream has it. What is not modelled is refused
// when the simulation is built: a port or a parameter that is not declared here is unknown, and for
// values the modules not_modelled_*, which do not exist, stand in the way.
//
// tests/test_ecp5_cells.py proves the cells of the logic slices equal to those that Yosys ships,
// and checks block RAM, multiplier and adder against tests/hdl/ecp5_models.py.
//
// Ref: Lattice FPGA-DS-02012 (slices), FPGA-TN-02204 (DP16KD: write modes, output registers, byte
// enables), FPGA-TN-02205 (MULT18X18D, ALU54B and its opcodes).

// Bit D C B A of INIT.
module LUT4 #(parameter [15:0] INIT = 0) (input A, B, C, D, output Z);
    assign Z = INIT[{D, C, B, A}];
endmodule

// ALUT where C0 is 1.
module PFUMX (input ALUT, BLUT, C0, output Z);
    assign Z = C0 ? ALUT : BLUT;
endmodule

// D1 where SD is 1.
module L6MUX21 (input D0, D1, SD, output Z);
    assign Z = SD ? D1 : D0;
endmodule

// Two bits of a sum: where the LUT4 of a bit is 1 the carry passes, else it is the LUT2 of A and B.
module CCU2C #(
    parameter [15:0] INIT0 = 0, INIT1 = 0, parameter INJECT1_0 = "YES", INJECT1_1 = "YES") (
    input CIN, A0, B0, C0, D0, A1, B1, C1, D1, output S0, S1, COUT);
    if (INJECT1_0 != "NO" || INJECT1_1 != "NO") not_modelled_CCU2C_INJECT1 refused ();
    wire pass_0 = INIT0[{D0, C0, B0, A0}], pass_1 = INIT1[{D1, C1, B1, A1}];
    wire carry = pass_0 ? CIN : INIT0[{2'b00, B0, A0}];
    assign S0 = pass_0 ^ CIN;
    assign S1 = pass_1 ^ carry;
    assign COUT = pass_1 ? carry : INIT1[{2'b00, B1, A1}];
endmodule

// Register of a slice; its synchronous reset goes before its enable.
module TRELLIS_FF #(
    parameter GSR = "ENABLED", CEMUX = "1", CLKMUX = "CLK", LSRMUX = "LSR", SRMODE = "LSR_OVER_CE",
    REGSET = "RESET") (
    input CLK, LSR, CE, DI, output reg Q);
    if (CLKMUX != "CLK" || SRMODE != "LSR_OVER_CE")
        not_modelled_TRELLIS_FF_edge_or_reset refused ();
    if (CEMUX != "1" && CEMUX != "CE" && CEMUX != "INV") not_modelled_TRELLIS_FF_CEMUX refused ();
    if (LSRMUX != "LSR" && LSRMUX != "INV") not_modelled_TRELLIS_FF_LSRMUX refused ();
    initial Q = REGSET == "SET";
    wire enable = CEMUX == "1" ? 1'b1 : CEMUX == "INV" ? ~CE : CE;
    wire reset = LSRMUX == "INV" ? ~LSR : LSR;
    always @(posedge CLK)
        if (reset) Q <= REGSET == "SET";
        else if (enable) Q <= DI;
endmodule

// Distributed RAM of 16 words: read in the same cycle, written at its end.
module TRELLIS_DPR16X4 #(
    parameter [63:0] INITVAL = 0, parameter WCKMUX = "WCK", WREMUX = "WRE") (
    input [3:0] DI, WAD, RAD, input WRE, WCK, output [3:0] DO);
    if (WCKMUX != "WCK" || WREMUX != "WRE") not_modelled_TRELLIS_DPR16X4_inverted refused ();
    reg [3:0] mem [0:15];
    integer word;
    initial for (word = 0; word < 16; word = word + 1) mem[word] = INITVAL[4 * word +: 4];
    always @(posedge WCK) if (WRE) mem[WAD] <= DI;
    assign DO = mem[RAD];
endmodule

// Multiplier of two operands of 18 bits, with registers on CLK0 in front, within and behind. Beside
// the product it gives its registered operands to the adder.
module MULT18X18D #(
    parameter GSR = "ENABLED",
    REG_INPUTA_CLK = "NONE", REG_INPUTA_CE = "CE0", REG_INPUTA_RST = "RST0",
    REG_INPUTB_CLK = "NONE", REG_INPUTB_CE = "CE0", REG_INPUTB_RST = "RST0",
    REG_PIPELINE_CLK = "NONE", REG_PIPELINE_CE = "CE0", REG_PIPELINE_RST = "RST0",
    REG_OUTPUT_CLK = "NONE", REG_OUTPUT_CE = "CE0", REG_OUTPUT_RST = "RST0") (
    input
        A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0,
    input
        B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0,
    input
        C17, C16, C15, C14, C13, C12, C11, C10, C9, C8, C7, C6, C5, C4, C3, C2, C1, C0,
    input SIGNEDA, SIGNEDB, SOURCEA, SOURCEB,
    input CLK3, CLK2, CLK1, CLK0, CE3, CE2, CE1, CE0, RST3, RST2, RST1, RST0,
    output
        ROA17, ROA16, ROA15, ROA14, ROA13, ROA12, ROA11, ROA10, ROA9, ROA8, ROA7, ROA6, ROA5,
        ROA4, ROA3, ROA2, ROA1, ROA0,
    output
        ROB17, ROB16, ROB15, ROB14, ROB13, ROB12, ROB11, ROB10, ROB9, ROB8, ROB7, ROB6, ROB5,
        ROB4, ROB3, ROB2, ROB1, ROB0,
    output
        P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19,
        P18, P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0,
    output SIGNEDP);
    if ((REG_INPUTA_CLK != "NONE" && REG_INPUTA_CLK != "CLK0") ||
        (REG_INPUTB_CLK != "NONE" && REG_INPUTB_CLK != "CLK0") ||
        (REG_PIPELINE_CLK != "NONE" && REG_PIPELINE_CLK != "CLK0") ||
        (REG_OUTPUT_CLK != "NONE" && REG_OUTPUT_CLK != "CLK0"))
        not_modelled_MULT18X18D_clock refused ();
    if (REG_INPUTA_CE != "CE0" || REG_INPUTB_CE != "CE0" || REG_PIPELINE_CE != "CE0" ||
        REG_OUTPUT_CE != "CE0") not_modelled_MULT18X18D_enable refused ();
    wire [17:0] a_bits = {
        A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0};
    wire [17:0] b_bits = {
        B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0};
    wire signed [18:0] a_wide = {SIGNEDA & A17, a_bits}, b_wide = {SIGNEDB & B17, b_bits};
    wire signed [18:0] a, b;
    wire [35:0] product, behind, result;
    dsp_register #(19, REG_INPUTA_CLK != "NONE") input_a (CLK0, CE0, RST0, a_wide, a);
    dsp_register #(19, REG_INPUTB_CLK != "NONE") input_b (CLK0, CE0, RST0, b_wide, b);
    assign product = a * b;
    dsp_register #(36, REG_PIPELINE_CLK != "NONE") pipeline (CLK0, CE0, RST0, product, behind);
    dsp_register #(36, REG_OUTPUT_CLK != "NONE") out (CLK0, CE0, RST0, behind, result);
    assign {
        P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19,
        P18, P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0} =
        result;
    assign {
        ROA17, ROA16, ROA15, ROA14, ROA13, ROA12, ROA11, ROA10, ROA9, ROA8, ROA7, ROA6, ROA5,
        ROA4, ROA3, ROA2, ROA1, ROA0} = a[17:0];
    assign {
        ROB17, ROB16, ROB15, ROB14, ROB13, ROB12, ROB11, ROB10, ROB9, ROB8, ROB7, ROB6, ROB5,
        ROB4, ROB3, ROB2, ROB1, ROB0} = b[17:0];
    assign SIGNEDP = SIGNEDA | SIGNEDB;
endmodule

// Adder of the products of two multipliers and of a third number, 0 or C. A bit of C that nobody
// connects is 1: a sum that depends on it shows.
module ALU54B #(
    parameter GSR = "ENABLED",
    REG_OUTPUT0_CLK = "NONE", REG_OUTPUT0_CE = "CE0", REG_OUTPUT0_RST = "RST0",
    REG_OUTPUT1_CLK = "NONE", REG_OUTPUT1_CE = "CE0", REG_OUTPUT1_RST = "RST0") (
    input
        MA35, MA34, MA33, MA32, MA31, MA30, MA29, MA28, MA27, MA26, MA25, MA24, MA23, MA22,
        MA21, MA20, MA19, MA18, MA17, MA16, MA15, MA14, MA13, MA12, MA11, MA10, MA9, MA8, MA7,
        MA6, MA5, MA4, MA3, MA2, MA1, MA0,
    input
        MB35, MB34, MB33, MB32, MB31, MB30, MB29, MB28, MB27, MB26, MB25, MB24, MB23, MB22,
        MB21, MB20, MB19, MB18, MB17, MB16, MB15, MB14, MB13, MB12, MB11, MB10, MB9, MB8, MB7,
        MB6, MB5, MB4, MB3, MB2, MB1, MB0,
    input
        A35, A34, A33, A32, A31, A30, A29, A28, A27, A26, A25, A24, A23, A22, A21, A20, A19,
        A18, A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0,
    input
        B35, B34, B33, B32, B31, B30, B29, B28, B27, B26, B25, B24, B23, B22, B21, B20, B19,
        B18, B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0,
    input
        C53 = 1'b1, C52 = 1'b1, C51 = 1'b1, C50 = 1'b1, C49 = 1'b1, C48 = 1'b1, C47 = 1'b1,
        C46 = 1'b1, C45 = 1'b1, C44 = 1'b1, C43 = 1'b1, C42 = 1'b1, C41 = 1'b1, C40 = 1'b1,
        C39 = 1'b1, C38 = 1'b1, C37 = 1'b1, C36 = 1'b1, C35 = 1'b1, C34 = 1'b1, C33 = 1'b1,
        C32 = 1'b1, C31 = 1'b1, C30 = 1'b1, C29 = 1'b1, C28 = 1'b1, C27 = 1'b1, C26 = 1'b1,
        C25 = 1'b1, C24 = 1'b1, C23 = 1'b1, C22 = 1'b1, C21 = 1'b1, C20 = 1'b1, C19 = 1'b1,
        C18 = 1'b1, C17 = 1'b1, C16 = 1'b1, C15 = 1'b1, C14 = 1'b1, C13 = 1'b1, C12 = 1'b1,
        C11 = 1'b1, C10 = 1'b1, C9 = 1'b1, C8 = 1'b1, C7 = 1'b1, C6 = 1'b1, C5 = 1'b1, C4 = 1'b1,
        C3 = 1'b1, C2 = 1'b1, C1 = 1'b1, C0 = 1'b1,
    input SIGNEDIA, SIGNEDIB,
    input OP10, OP9, OP8, OP7, OP6, OP5, OP4, OP3, OP2, OP1, OP0,
    input CLK3, CLK2, CLK1, CLK0, CE3, CE2, CE1, CE0, RST3, RST2, RST1, RST0,
    output
        R53, R52, R51, R50, R49, R48, R47, R46, R45, R44, R43, R42, R41, R40, R39, R38, R37,
        R36, R35, R34, R33, R32, R31, R30, R29, R28, R27, R26, R25, R24, R23, R22, R21, R20,
        R19, R18, R17, R16, R15, R14, R13, R12, R11, R10, R9, R8, R7, R6, R5, R4, R3, R2, R1, R0);
    if ((REG_OUTPUT0_CLK != "NONE" && REG_OUTPUT0_CLK != "CLK0") ||
        REG_OUTPUT1_CLK != REG_OUTPUT0_CLK) not_modelled_ALU54B_clock refused ();
    if (REG_OUTPUT0_CE != "CE0" || REG_OUTPUT1_CE != "CE0") not_modelled_ALU54B_enable refused ();
    wire [35:0] ma = {
        MA35, MA34, MA33, MA32, MA31, MA30, MA29, MA28, MA27, MA26, MA25, MA24, MA23, MA22,
        MA21, MA20, MA19, MA18, MA17, MA16, MA15, MA14, MA13, MA12, MA11, MA10, MA9, MA8, MA7,
        MA6, MA5, MA4, MA3, MA2, MA1, MA0};
    wire [35:0] mb = {
        MB35, MB34, MB33, MB32, MB31, MB30, MB29, MB28, MB27, MB26, MB25, MB24, MB23, MB22,
        MB21, MB20, MB19, MB18, MB17, MB16, MB15, MB14, MB13, MB12, MB11, MB10, MB9, MB8, MB7,
        MB6, MB5, MB4, MB3, MB2, MB1, MB0};
    wire signed [36:0] first = {SIGNEDIA & MA35, ma};
    wire signed [36:0] second = {SIGNEDIB & MB35, mb};
    wire signed [53:0] third = {
        C53, C52, C51, C50, C49, C48, C47, C46, C45, C44, C43, C42, C41, C40, C39, C38, C37,
        C36, C35, C34, C33, C32, C31, C30, C29, C28, C27, C26, C25, C24, C23, C22, C21, C20,
        C19, C18, C17, C16, C15, C14, C13, C12, C11, C10, C9, C8, C7, C6, C5, C4, C3, C2, C1, C0};
    // Opcode 4 is a sum; operands 1 and 1 are the products, the third is 0 (nothing) or 3 (C).
    wire known = {OP10, OP9, OP8, OP7} == 4 && {OP3, OP2} == 1 && {OP1, OP0} == 1;
    wire [2:0] choice = {OP6, OP5, OP4};
    wire signed [53:0] sum = choice == 3 ? first + second + third : first + second;
    wire [53:0] total, result;
    // An opcode that is not modelled gives what cannot be right.
    assign total = known && (choice == 0 || choice == 3) ? sum : ~sum;
    dsp_register #(54, REG_OUTPUT0_CLK != "NONE") out (CLK0, CE0, RST0, total, result);
    assign {
        R53, R52, R51, R50, R49, R48, R47, R46, R45, R44, R43, R42, R41, R40, R39, R38, R37,
        R36, R35, R34, R33, R32, R31, R30, R29, R28, R27, R26, R25, R24, R23, R22, R21, R20,
        R19, R18, R17, R16, R15, R14, R13, R12, R11, R10, R9, R8, R7, R6, R5, R4, R3, R2, R1, R0} =
        result;
endmodule

// A register of a DSP slice where ON, else wires.
module dsp_register #(parameter WIDTH = 1, ON = 0) (
    input clk, enable, reset, input [WIDTH-1:0] d, output [WIDTH-1:0] q);
    reg [WIDTH-1:0] kept;
    always @(posedge clk)
        if (reset) kept <= 0;
        else if (enable) kept <= d;
    assign q = ON ? kept : d;
endmodule

// Block RAM of 2048 bytes of nine bits. A port of 18 bits has its byte enables on AD1..0; one of 36
// bits, of which port A writes and port B reads, on ADA3..0, and the data of both ports. In write
// mode NORMAL a write leaves the output of its port as it is, in READBEFOREWRITE it reads as well.
// What holds a byte that the other port writes on the same cycle is read inverted: the data sheet
// promises nothing.
module DP16KD #(
    parameter GSR = "ENABLED", RESETMODE = "SYNC", ASYNC_RESET_RELEASE = "SYNC",
    DATA_WIDTH_A = 18, REGMODE_A = "NOREG", WRITEMODE_A = "NORMAL", CSDECODE_A = "0b000",
    CLKAMUX = "CLKA",
    DATA_WIDTH_B = 18, REGMODE_B = "NOREG", WRITEMODE_B = "NORMAL", CSDECODE_B = "0b000",
    CLKBMUX = "CLKB",
    parameter [319:0]
        INITVAL_00 = 0, INITVAL_01 = 0, INITVAL_02 = 0, INITVAL_03 = 0, INITVAL_04 = 0,
        INITVAL_05 = 0, INITVAL_06 = 0, INITVAL_07 = 0, INITVAL_08 = 0, INITVAL_09 = 0,
        INITVAL_0A = 0, INITVAL_0B = 0, INITVAL_0C = 0, INITVAL_0D = 0, INITVAL_0E = 0,
        INITVAL_0F = 0, INITVAL_10 = 0, INITVAL_11 = 0, INITVAL_12 = 0, INITVAL_13 = 0,
        INITVAL_14 = 0, INITVAL_15 = 0, INITVAL_16 = 0, INITVAL_17 = 0, INITVAL_18 = 0,
        INITVAL_19 = 0, INITVAL_1A = 0, INITVAL_1B = 0, INITVAL_1C = 0, INITVAL_1D = 0,
        INITVAL_1E = 0, INITVAL_1F = 0, INITVAL_20 = 0, INITVAL_21 = 0, INITVAL_22 = 0,
        INITVAL_23 = 0, INITVAL_24 = 0, INITVAL_25 = 0, INITVAL_26 = 0, INITVAL_27 = 0,
        INITVAL_28 = 0, INITVAL_29 = 0, INITVAL_2A = 0, INITVAL_2B = 0, INITVAL_2C = 0,
        INITVAL_2D = 0, INITVAL_2E = 0, INITVAL_2F = 0, INITVAL_30 = 0, INITVAL_31 = 0,
        INITVAL_32 = 0, INITVAL_33 = 0, INITVAL_34 = 0, INITVAL_35 = 0, INITVAL_36 = 0,
        INITVAL_37 = 0, INITVAL_38 = 0, INITVAL_39 = 0, INITVAL_3A = 0, INITVAL_3B = 0,
        INITVAL_3C = 0, INITVAL_3D = 0, INITVAL_3E = 0, INITVAL_3F = 0) (
    input CLKA, CEA, OCEA, WEA, RSTA, CSA2, CSA1, CSA0,
    input
        ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0,
    input
        DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5,
        DIA4, DIA3, DIA2, DIA1, DIA0,
    output
        DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5,
        DOA4, DOA3, DOA2, DOA1, DOA0,
    input CLKB, CEB, OCEB, WEB, RSTB, CSB2, CSB1, CSB0,
    input
        ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0,
    input
        DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5,
        DIB4, DIB3, DIB2, DIB1, DIB0,
    output
        DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5,
        DOB4, DOB3, DOB2, DOB1, DOB0);
    if (CLKAMUX != "CLKA" || CLKBMUX != "CLKB") not_modelled_DP16KD_edge refused ();
    if (RESETMODE != "SYNC" && RESETMODE != "ASYNC") not_modelled_DP16KD_RESETMODE refused ();
    if (CSDECODE_A != "0b000" || CSDECODE_B != "0b000") not_modelled_DP16KD_CSDECODE refused ();
    if ((WRITEMODE_A != "NORMAL" && WRITEMODE_A != "READBEFOREWRITE") ||
        (WRITEMODE_B != "NORMAL" && WRITEMODE_B != "READBEFOREWRITE"))
        not_modelled_DP16KD_WRITEMODE refused ();
    if (!(DATA_WIDTH_A == 9 || DATA_WIDTH_A == 18 || DATA_WIDTH_A == 36) ||
        !(DATA_WIDTH_B == 9 || DATA_WIDTH_B == 18 || DATA_WIDTH_B == 36))
        not_modelled_DP16KD_DATA_WIDTH refused ();
    // Contents in words of 18 bits, of which each takes 20.
    localparam [20479:0] CONTENTS = {
        INITVAL_3F, INITVAL_3E, INITVAL_3D, INITVAL_3C, INITVAL_3B, INITVAL_3A, INITVAL_39,
        INITVAL_38, INITVAL_37, INITVAL_36, INITVAL_35, INITVAL_34, INITVAL_33, INITVAL_32,
        INITVAL_31, INITVAL_30, INITVAL_2F, INITVAL_2E, INITVAL_2D, INITVAL_2C, INITVAL_2B,
        INITVAL_2A, INITVAL_29, INITVAL_28, INITVAL_27, INITVAL_26, INITVAL_25, INITVAL_24,
        INITVAL_23, INITVAL_22, INITVAL_21, INITVAL_20, INITVAL_1F, INITVAL_1E, INITVAL_1D,
        INITVAL_1C, INITVAL_1B, INITVAL_1A, INITVAL_19, INITVAL_18, INITVAL_17, INITVAL_16,
        INITVAL_15, INITVAL_14, INITVAL_13, INITVAL_12, INITVAL_11, INITVAL_10, INITVAL_0F,
        INITVAL_0E, INITVAL_0D, INITVAL_0C, INITVAL_0B, INITVAL_0A, INITVAL_09, INITVAL_08,
        INITVAL_07, INITVAL_06, INITVAL_05, INITVAL_04, INITVAL_03, INITVAL_02, INITVAL_01,
        INITVAL_00};
    reg [8:0] bytes [0:2047];
    integer word;
    initial for (word = 0; word < 1024; word = word + 1)
        {bytes[2 * word + 1], bytes[2 * word]} = CONTENTS[20 * word +: 18];

    wire [13:0] address_a = {
        ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0};
    wire [13:0] address_b = {
        ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0};
    wire [17:0] data_a = {
        DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5,
        DIA4, DIA3, DIA2, DIA1, DIA0};
    wire [17:0] data_b = {
        DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5,
        DIB4, DIB3, DIB2, DIB1, DIB0};
    wire used_a = CEA & ~(CSA2 | CSA1 | CSA0), used_b = CEB & ~(CSB2 | CSB1 | CSB0);
    // Up to four bytes from the first of an access on.
    localparam [10:0] MASK_A = DATA_WIDTH_A / 9 - 1, MASK_B = DATA_WIDTH_B / 9 - 1;
    wire [10:0] first_a = DATA_WIDTH_A == 9 ? address_a[13:3] : DATA_WIDTH_A == 18 ?
        {address_a[13:4], 1'b0} : {address_a[13:5], 2'b00};
    wire [10:0] first_b = DATA_WIDTH_B == 9 ? address_b[13:3] : DATA_WIDTH_B == 18 ?
        {address_b[13:4], 1'b0} : {address_b[13:5], 2'b00};
    wire [3:0] write_a = !(used_a & WEA) ? 4'b0000 : DATA_WIDTH_A == 9 ? 4'b0001 :
        DATA_WIDTH_A == 18 ? {2'b00, address_a[1:0]} : address_a[3:0];
    wire [3:0] write_b = !(used_b & WEB) || DATA_WIDTH_B == 36 ? 4'b0000 : DATA_WIDTH_B == 9 ?
        4'b0001 : {2'b00, address_b[1:0]};
    wire [35:0] written_a = {data_b, data_a};

    // What is read, and whether the other port writes a byte of it.
    wire [35:0] stored_a = {18'b0, bytes[first_a | 11'd1], bytes[first_a]};
    wire [35:0] stored_b = {bytes[first_b | 11'd3], bytes[first_b | 11'd2], bytes[first_b | 11'd1],
        bytes[first_b]};
    wire [3:0] met_a, met_b;
    genvar place;
    for (place = 0; place < 4; place = place + 1) begin : byte_written
        wire [10:0] by_a = first_a | place, by_b = first_b | place;
        assign met_a[place] = write_b[place] && (by_b | MASK_A) == (first_a | MASK_A);
        assign met_b[place] = write_a[place] && (by_a | MASK_B) == (first_b | MASK_B);
    end

    wire reads_a = used_a & (~WEA | WRITEMODE_A == "READBEFOREWRITE");
    wire reads_b = used_b & (~WEB | WRITEMODE_B == "READBEFOREWRITE");
    reg [35:0] latch_a, latch_b, out_a, out_b;
    always @(posedge CLKA) begin
        if (write_a[0]) bytes[first_a] <= written_a[8:0];
        if (write_a[1]) bytes[first_a | 11'd1] <= written_a[17:9];
        if (write_a[2]) bytes[first_a | 11'd2] <= written_a[26:18];
        if (write_a[3]) bytes[first_a | 11'd3] <= written_a[35:27];
        if (RSTA) latch_a <= 0;
        else if (reads_a) latch_a <= stored_a ^ {36{|met_a}};
        if (RSTA) out_a <= 0;
        else if (OCEA) out_a <= latch_a;
    end
    always @(posedge CLKB) begin
        if (write_b[0]) bytes[first_b] <= data_b[8:0];
        if (write_b[1]) bytes[first_b | 11'd1] <= data_b[17:9];
        if (RSTB) latch_b <= 0;
        else if (reads_b) latch_b <= stored_b ^ {36{|met_b}};
        if (RSTB) out_b <= 0;
        else if (OCEB) out_b <= latch_b;
    end
    wire [35:0] read_a = RESETMODE == "ASYNC" && RSTA ? 36'b0 :
        REGMODE_A == "OUTREG" ? out_a : latch_a;
    wire [35:0] read_b = RESETMODE == "ASYNC" && RSTB ? 36'b0 :
        REGMODE_B == "OUTREG" ? out_b : latch_b;
    assign {
        DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5,
        DOA4, DOA3, DOA2, DOA1, DOA0} = DATA_WIDTH_B == 36 ? read_b[17:0] : read_a[17:0];
    assign {
        DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5,
        DOB4, DOB3, DOB2, DOB1, DOB0} = DATA_WIDTH_B == 36 ? read_b[35:18] : read_b[17:0];
endmodule
