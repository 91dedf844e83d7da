package io.niwaki

import okhttp3.Headers.Companion.toHeaders
import okhttp3.OkHttpClient
import okhttp3.Request
import okhttp3.RequestBody.Companion.toRequestBody
import kotlin.time.toJavaDuration

/** What [Transport]'s documentation shows. */
class OkHttpTransport(private val client: OkHttpClient) : Transport {
    override fun exchange(request: HttpRequest): Exchange {
        val call = client.newBuilder()
            .connectTimeout(request.connectTimeout.toJavaDuration())
            .readTimeout(request.readTimeout.toJavaDuration())
            .followRedirects(false)
            .retryOnConnectionFailure(false)
            .build()
            .newCall(
                Request.Builder().url(request.url).headers(request.headers.toHeaders())
                    .post(request.body.toRequestBody()).build(),
            )
        return object : Exchange {
            override fun send(): HttpResponse =
                call.execute().let { HttpResponse(it.code, it.headers.toMap(), it.body.byteStream()) }

            override fun cancel() = call.cancel()
        }
    }
}
