// The C++ side of the virtual board: clock, the far end of the serial line and the flash, bit by bit.
//
// Built together with what Verilator makes of hdl/board.py. Plain C functions, loaded with ctypes.
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "Vtop.h"
#include "verilated.h"

namespace {

// Ten bits: start, eight of data from the lowest on, stop.
constexpr int kFrameBits = 10;

// An SPI flash in mode 0 that can be read (command 0x03) and is erased where nobody wrote it.
struct Flash {
    std::vector<uint8_t> content;
    uint32_t offset = 0;             // address of the first byte of `content`
    bool clock = false;
    uint64_t shift = 0;
    unsigned bits = 0;
    uint8_t out = 1;

    uint8_t byte_at(uint32_t address) const {
        return address - offset < content.size() ? content[address - offset] : 0xFF;
    }

    // What the pins do to it; returns its output.
    uint8_t pins(bool select, bool now, bool in) {
        if (!select) {
            bits = 0;
            shift = 0;
        } else if (now && !clock) {
            if (bits < 32) shift = shift << 1 | in;
            ++bits;
        } else if (!now && clock && bits >= 32 && shift >> 24 == 0x03) {
            unsigned place = bits - 32;
            uint32_t address = (shift & 0xFFFFFF) + place / 8;
            out = byte_at(address & 0xFFFFFF) >> (7 - place % 8) & 1;
        }
        clock = now;
        return out;
    }
};

struct Board {
    VerilatedContext context;
    std::unique_ptr<Vtop> top = std::make_unique<Vtop>(&context, "board");
    double period = 0;               // cycles per bit
    std::deque<uint8_t> waiting;     // to the board
    std::vector<uint8_t> received;   // from the board
    unsigned sending = 0, sending_left = 0;
    double sending_next = 0;         // cycle of the next edge of what is sent
    unsigned taking = 0, taking_left = 0;
    double taking_next = 0;          // cycle of the next sample of what comes
    uint64_t cycle = 0, broken = 0;
    std::atomic<int> button{0};      // what it is pressed to, by another thread
    Flash flash;

    void edge() {
        // Between two cycles: within one, part of the chip would see the button before the rest.
        top->button = button;
        top->clk = 0;
        top->eval();
        top->clk = 1;
        top->eval();
        ++cycle;
        top->flash_in = flash.pins(top->flash_select, top->flash_clock, top->flash_out);
    }

    void send() {
        if (!sending_left) {
            if (waiting.empty()) return;
            sending = 1u << (kFrameBits - 1) | waiting.front() << 1;
            waiting.pop_front();
            sending_left = kFrameBits;
            if (sending_next < cycle) sending_next = cycle;
        }
        if (cycle < sending_next) return;
        top->uart_rx = sending & 1;
        sending >>= 1;
        --sending_left;
        sending_next += period;
    }

    void take() {
        if (!taking_left) {
            if (top->uart_tx) return;
            taking_left = kFrameBits;
            taking_next = cycle + period / 2;
        }
        if (cycle < taking_next) return;
        taking = taking >> 1 | unsigned(top->uart_tx) << (kFrameBits - 1);
        taking_next += period;
        if (--taking_left) return;
        if (taking >> (kFrameBits - 1) & 1) received.push_back(taking >> 1 & 0xFF);
        else ++broken;
    }
};

}  // namespace

extern "C" {

// `flash` holds `size` bytes from `offset` on.
Board* board_new(double period, const uint8_t* flash, uint64_t size, uint32_t offset) {
    auto* board = new Board;
    board->period = period;
    board->flash.content.assign(flash, flash + size);
    board->flash.offset = offset;
    board->top->uart_rx = 1;
    board->top->rst = 1;
    for (int i = 0; i < 4; ++i) board->edge();
    board->top->rst = 0;
    return board;
}

void board_free(Board* board) { delete board; }

// Queue bytes for the board, let some cycles pass; returns how many bytes have come so far.
uint64_t board_run(Board* board, const uint8_t* data, uint64_t size, uint64_t cycles) {
    board->waiting.insert(board->waiting.end(), data, data + size);
    for (uint64_t i = 0; i < cycles; ++i) {
        board->send();
        board->take();
        board->edge();
    }
    return board->received.size();
}

// Take the bytes that have come.
void board_take(Board* board, uint8_t* out) {
    for (uint8_t byte : board->received) *out++ = byte;
    board->received.clear();
}

uint64_t board_waiting(Board* board) { return board->waiting.size(); }

// From any thread.
void board_button(Board* board, int level) { board->button = level; }

// Lamps, lowest bit first: alive, running, fault, line, speaking.
int board_lamps(Board* board) {
    const auto& top = *board->top;
    return top.led_alive | top.led_running << 1 | top.led_fault << 2 | top.led_line << 3
        | top.led_speaking << 4;
}

}  // extern "C"
