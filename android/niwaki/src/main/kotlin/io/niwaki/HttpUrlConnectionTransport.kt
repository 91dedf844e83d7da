package io.niwaki

import java.io.ByteArrayInputStream
import java.io.InputStream
import java.net.HttpRetryException
import java.net.HttpURLConnection
import java.net.URL
import kotlin.time.Duration

/**
 * Carries requests over [HttpURLConnection]: the platform's trust store, proxies and network security configuration.
 * On Android cancelling closes the connection at once; a desktop's JVM closes it with the next byte that comes.
 */
public class HttpUrlConnectionTransport : Transport {
    override fun exchange(request: HttpRequest): Exchange = UrlExchange(request)
}

private class UrlExchange(private val request: HttpRequest) : Exchange {
    private val connection = URL(request.url).openConnection() as HttpURLConnection

    override fun send(): HttpResponse = with(connection) {
        requestMethod = "POST"
        doOutput = true
        useCaches = false
        instanceFollowRedirects = false
        connectTimeout = request.connectTimeout.toTimeout()
        readTimeout = request.readTimeout.toTimeout()
        // The body goes out once: without this the platform may send it again by itself.
        setFixedLengthStreamingMode(request.body.size)
        request.headers.forEach { (name, value) -> setRequestProperty(name, value) }
        setRequestProperty("Accept-Encoding", "identity")
        setRequestProperty("Connection", "close")
        outputStream.use { it.write(request.body) }
        try {
            HttpResponse(responseCode, lastHeaders(), body())
        } catch (e: HttpRetryException) {
            // A response that the platform would answer itself, had the body not gone out.
            HttpResponse(e.responseCode(), emptyMap(), nothing())
        }
    }

    override fun cancel() = connection.disconnect()

    private fun lastHeaders(): Map<String, String> =
        connection.headerFields.filterKeys { it != null }.mapValues { (_, values) -> values.last() }

    private fun body(): InputStream =
        if (connection.responseCode < HttpURLConnection.HTTP_BAD_REQUEST) {
            connection.inputStream
        } else {
            connection.errorStream ?: nothing()
        }
}

/** Of no time at all the platform would make no limit. */
private fun Duration.toTimeout(): Int = inWholeMilliseconds.coerceIn(1, Int.MAX_VALUE.toLong()).toInt()

private fun nothing(): InputStream = ByteArrayInputStream(ByteArray(0))
