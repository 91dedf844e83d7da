package io.niwaki

import com.sun.net.httpserver.HttpExchange
import com.sun.net.httpserver.HttpServer
import java.net.InetAddress
import java.net.InetSocketAddress
import java.net.ServerSocket
import java.util.concurrent.CopyOnWriteArrayList
import java.util.concurrent.Executors

/** The JDK's HTTP server on loopback, answering as a test says. */
class TestServer(answer: HttpExchange.() -> Unit) : AutoCloseable {
    /** The bodies of the requests that came. */
    val requests = CopyOnWriteArrayList<String>()

    /** The keys that came with them. */
    val keys = CopyOnWriteArrayList<String?>()

    private val threads = Executors.newCachedThreadPool { Thread(it).apply { isDaemon = true } }
    private val server = HttpServer.create(InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0).apply {
        executor = threads
        createContext("/v1/chat/completions") { exchange ->
            keys += exchange.requestHeaders.getFirst("Authorization")
            requests += exchange.requestBody.readBytes().decodeToString()
            exchange.use { it.answer() }
        }
        start()
    }

    val url = "http://127.0.0.1:${server.address.port}"

    override fun close() {
        server.stop(0)
        threads.shutdownNow()
    }

    private inline fun HttpExchange.use(call: (HttpExchange) -> Unit) = try { call(this) } finally { close() }
}

/** Begins an event stream. */
fun HttpExchange.streamEvents() {
    responseHeaders.add("Content-Type", "text/event-stream")
    sendResponseHeaders(200, 0)
}

fun HttpExchange.send(text: String) {
    responseBody.write(text.encodeToByteArray())
    responseBody.flush()
}

/** An event with a piece of an answer. */
fun piece(text: String) = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"$text\"}}]}\n\n"

val ending = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]," +
    "\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n"

/** A server with an answer in two pieces. */
fun goodServer() = TestServer {
    streamEvents()
    send(piece("from "))
    send(piece("afar"))
    send(ending)
}

/** A port that nothing listens at. */
fun deadUrl(): String = ServerSocket(0).use { "http://127.0.0.1:${it.localPort}" }
