import Foundation

@testable import Niwaki

/// An HTTP server on loopback that answers as a test says, with sockets alone.
final class TestServer: Sendable {
    struct Failed: Error {}

    /// A connection, after its request was read.
    struct Connection: Sendable {
        fileprivate let socket: Int32

        func send(_ text: String) throws {
            var bytes = ArraySlice(text.utf8)
            while !bytes.isEmpty {
                let sent = bytes.withUnsafeBytes { Glibc.send(socket, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
                guard sent > 0 else { throw Failed() }
                bytes = bytes.dropFirst(sent)
            }
        }

        /// Begins an event stream that ends with the connection.
        func streamEvents() throws {
            try send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        }
    }

    let url: String
    private let socket: Int32
    private let came = Locked<[String]>([])

    /// The requests that came, headers and all.
    var requests: [String] { came.withLock { $0 } }

    init(_ answer: @escaping @Sendable (Connection) throws -> Void) throws {
        let (socket, port) = try listeningSocket()
        self.socket = socket
        url = "http://127.0.0.1:\(port)"
        let came = self.came
        Thread.detachNewThread {
            while true {
                let connection = accept(socket, nil, nil)
                guard connection >= 0 else { return }
                Thread.detachNewThread {
                    defer { Glibc.close(connection) }
                    guard let request = readRequest(connection) else { return }
                    came.withLock { $0.append(request) }
                    try? answer(Connection(socket: connection))
                    shutdown(connection, Int32(SHUT_RDWR))
                }
            }
        }
    }

    deinit {
        shutdown(socket, Int32(SHUT_RDWR))
        Glibc.close(socket)
    }

    /// One with an answer in two pieces.
    static func good() throws -> TestServer {
        try TestServer { connection in
            try connection.streamEvents()
            try connection.send(piece("from "))
            try connection.send(piece("afar"))
            try connection.send(ending)
        }
    }
}

/// An event with a piece of an answer.
func piece(_ text: String) -> String {
    #"data: {"choices":[{"index":0,"delta":{"content":"\#(text)"}}]}"# + "\n\n"
}

let ending =
    #"data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":2}}"#
    + "\n\ndata: [DONE]\n\n"

/// A URL that nothing listens at.
func deadURL() throws -> String {
    let (socket, port) = try listeningSocket()
    close(socket)
    return "http://127.0.0.1:\(port)"
}

private func listeningSocket() throws -> (Int32, UInt16) {
    let socket = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    var length = socklen_t(MemoryLayout<sockaddr_in>.size)
    let bound = withUnsafeMutablePointer(to: &address) { pointer in
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
            bind(socket, address, length) == 0 && listen(socket, 16) == 0 && getsockname(socket, address, &length) == 0
        }
    }
    guard bound else { throw TestServer.Failed() }
    return (socket, UInt16(bigEndian: address.sin_port))
}

private func readRequest(_ connection: Int32) -> String? {
    var bytes: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 4096)
    while true {
        let count = recv(connection, &buffer, buffer.count, 0)
        guard count > 0 else { return nil }
        bytes += buffer[..<count]
        let text = String(decoding: bytes, as: UTF8.self)
        guard let head = text.range(of: "\r\n\r\n") else { continue }
        let lengthLine = text[..<head.lowerBound].lowercased().split(separator: "\r\n")
            .first { $0.hasPrefix("content-length:") }
        let length = lengthLine.flatMap { Int($0.dropFirst(15).trimmingCharacters(in: .whitespaces)) } ?? 0
        if text[head.upperBound...].utf8.count >= length { return text }
    }
}
