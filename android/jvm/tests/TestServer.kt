package io.niwaki

import java.io.IOException
import java.net.InetAddress
import java.net.ServerSocket
import java.net.Socket
import java.util.concurrent.CopyOnWriteArrayList
import kotlin.concurrent.thread

/**
 * An HTTP server on loopback that answers as a test says, one request to a connection. The JDK's own will not do: it resets
 * a new connection now and then before it has read anything of it.
 */
class TestServer(private val answer: Answer.() -> Unit) : AutoCloseable {
    /** The bodies of the requests that came. */
    val requests = CopyOnWriteArrayList<String>()

    /** The keys that came with them. */
    val keys = CopyOnWriteArrayList<String?>()

    private val listener = ServerSocket(0, 50, InetAddress.getLoopbackAddress())
    val url = "http://127.0.0.1:${listener.localPort}"

    init {
        thread(isDaemon = true) {
            try {
                while (true) listener.accept().let { thread(isDaemon = true) { serve(it) } }
            } catch (_: IOException) {
                // It was closed.
            }
        }
    }

    private fun serve(connection: Socket) = connection.use {
        val input = connection.getInputStream()
        val head = StringBuilder()
        while (!head.endsWith("\r\n\r\n")) head.append(input.read().also { check(it >= 0) { "no request came" } }.toChar())
        val lines = head.lines()
        check(lines.first() == "POST /v1/chat/completions HTTP/1.1") { lines.first() }
        fun header(name: String) =
            lines.firstOrNull { it.startsWith("$name:", ignoreCase = true) }?.substringAfter(':')?.trim()
        keys += header("Authorization")
        requests += input.readNBytes(header("Content-Length")!!.toInt()).decodeToString()
        Answer(connection).answer()
    }

    override fun close() = listener.close()
}

/** What a [TestServer] answers. The end of the connection is its end. */
class Answer(private val connection: Socket) {
    /** Sends the head. */
    fun begin(status: Int, vararg headers: String) {
        val lines = listOf("HTTP/1.1 $status Some", *headers, "Connection: close", "", "")
        send(lines.joinToString("\r\n"))
    }

    /** Begins an event stream. */
    fun streamEvents() = begin(200, "Content-Type: text/event-stream")

    fun send(text: String) = connection.getOutputStream().write(text.encodeToByteArray())
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
